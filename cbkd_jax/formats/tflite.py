"""TFLite (LiteRT): for phones and small boards, one image at a time.

JAX's own `jax2tf` hands the program to TensorFlow, whose converter writes it in
TFLite's operations. Written for one image, biases and activations become parts
of the convolutions; written for any number of them, the file would compute the
shapes of all its constants anew in every call.
"""

import functools
import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError

SUFFIX = '.tflite'
LIBRARIES = ('tensorflow', 'ai-edge-litert')

# Looked for, not imported: TensorFlow takes seconds, and reading needs none.
for _library in ('tensorflow', 'ai_edge_litert'):
  if importlib.util.find_spec(_library) is None:
    raise UserError(
      f"the format 'tflite' needs {_library}; pip install tensorflow "
      "ai-edge-litert (the extra 'tflite')"
    )

# How many images the file takes at a time.
BATCH = 1
INPUT, OUTPUT = 'images', 'logits'
DETAILS = {'input': INPUT, 'output': OUTPUT}


def write(deployed: Deployed, path: Path) -> None:
  """Writes a network.

  Args:
    deployed: the network. The file's signature 'serving_default' has the input
      'images', `[1, height, width, channels]`, and the output 'logits'.
    path: the file.

  Raises:
    UserError: TensorFlow can't convert the network.
  """
  # What it tells of its start is of no use here.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
  import tensorflow as tf
  from jax.experimental import jax2tf

  logits = jax2tf.convert(
    functools.partial(deployed.function, deployed.arrays),
    with_gradient=False,
    native_serialization_platforms=['cpu'],
  )
  shape = (BATCH, *deployed.image_shape)
  module = tf.Module()
  module.call = tf.function(
    lambda images: {OUTPUT: logits(images)},
    input_signature=[tf.TensorSpec(shape, deployed.input_dtype, INPUT)],
    autograph=False,
  )
  with tf.device('/CPU:0'):
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
      [module.call.get_concrete_function()], module
    )
    # Nothing that needs more than TFLite itself to run.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
      content = converter.convert()
    except Exception as error:  # its own error's class is not public
      reason = ' '.join(str(error).split())
      raise UserError(
        f"the format 'tflite' can't express this network: {reason[:300]}"
      ) from error
  path.write_bytes(content)


def load(
  path: Path, info: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's function from images to logits; image by image.

  Args:
    path: the file.
    info: not needed.

  Raises:
    UserError: LiteRT can't read the file.
  """
  del info  # The file says it.
  from ai_edge_litert.interpreter import Interpreter

  try:
    interpreter = Interpreter(model_content=path.read_bytes())
    run = interpreter.get_signature_runner()
  except ValueError as error:
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{path}: LiteRT cannot read it, is it damaged? {reason}'
    ) from None

  def logits(images: np.ndarray) -> np.ndarray:
    found = [run(images=image[None])[OUTPUT] for image in images]
    return np.concatenate(found)

  return logits
