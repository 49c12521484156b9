"""ONNX: for onnxruntime and whatever else reads ONNX files.

The program is JAX's own trace, operation by operation (`onnx_elementwise`,
`onnx_axes`, `onnx_layers`), in the order of axes that convolutions want
(`onnx_graph`), in the words that runtimes are fast at (`onnx_fusion`).
"""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import cbkd_jax
from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError
from cbkd_jax.formats import onnx_int8, onnx_trace
from cbkd_jax.formats.onnx_graph import Graph, Node

try:
  import onnx
  import onnxruntime
except ImportError as error:
  raise UserError(
    f"the format 'onnx' needs {error.name}; pip install onnx onnxruntime "
    "(the extra 'onnx')"
  ) from None

SUFFIX = '.onnx'
LIBRARIES = ('onnx', 'onnxruntime')

# Read by onnxruntime from 1.14, TensorRT from 8.6.
OPSET = 18
INPUT, OUTPUT = 'images', 'logits'
DETAILS = {'opset': OPSET, 'input': INPUT, 'output': OUTPUT}


def write(deployed: Deployed, path: Path) -> None:
  """Writes a network.

  Args:
    deployed: the network. The file's input is 'images', its output 'logits',
      the batch of any size.
    path: the file.

  Raises:
    UserError: an operation of the network is not known here.
  """
  found = convert(deployed)
  onnx.checker.check_model(found, full_check=True)
  onnx.save(found, path)


def write_int8(
  deployed: Deployed, path: Path, images: np.ndarray
) -> dict[str, Any]:
  """Writes a network whose layers compute in 8-bit integers.

  Args:
    deployed: the network.
    path: the file; inputs and output as in `write`.
    images: to calibrate by, uint8 `[examples, height, width, channels]`.

  Returns:
    What was done, for the JSON.

  Raises:
    UserError: as in `write`.
  """
  with tempfile.TemporaryDirectory() as directory:
    plain = Path(directory) / 'plain.onnx'
    write(deployed, plain)
    done = onnx_int8.quantize(plain, path, INPUT, deployed.prepare(images))
  aware = 'quantize' in deployed.model
  return {**done, 'trained': 'with rounding' if aware else 'in float'}


def load(
  path: Path, info: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's function from images to logits, by onnxruntime on the CPU."""
  del info  # The file says it.
  try:
    session = onnxruntime.InferenceSession(
      path.read_bytes(), providers=['CPUExecutionProvider']
    )
  except Exception as error:  # its errors have no common class of their own
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{path}: onnxruntime cannot read it, is it damaged? {reason}'
    ) from None
  return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def convert(deployed: Deployed) -> onnx.ModelProto:
  """A network as an ONNX model."""
  graph, shape = onnx_trace.trace(
    deployed.function,
    deployed.arrays,
    deployed.image_shape,
    deployed.input_dtype,
    (INPUT, OUTPUT),
  )
  found = model(graph, deployed.image_shape, deployed.input_dtype, shape[1:])
  onnx.helper.set_model_props(found, _properties(deployed))
  return found


def model(
  graph: Graph,
  image_shape: Sequence[int],
  input_dtype: Any,
  output_shape: Sequence[int],
) -> onnx.ModelProto:
  """A graph as an ONNX model.

  Args:
    graph: of `onnx_trace.trace`, its names 'images' and 'logits'.
    image_shape: without the batch.
    input_dtype: of the images.
    output_shape: without the batch.
  """
  value = onnx.helper.make_tensor_value_info
  kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(input_dtype))
  opsets = [onnx.helper.make_opsetid('', OPSET)]
  return onnx.helper.make_model(
    onnx.helper.make_graph(
      [_node(node) for node in graph.nodes],
      'network',
      [value(INPUT, kind, ['batch', *image_shape])],
      [value(OUTPUT, onnx.TensorProto.FLOAT, ['batch', *output_shape])],
      [onnx.numpy_helper.from_array(a, n) for n, a in graph.constants.items()],
    ),
    producer_name='cbkd_jax',
    producer_version=cbkd_jax.__version__,
    opset_imports=opsets,
    ir_version=onnx.helper.find_min_ir_version_for(opsets),
  )


def _properties(deployed: Deployed) -> dict[str, str]:
  """What the file says of itself, for those who have nothing but the file."""
  scaled = {'scale': 1 / 255, 'mean': deployed.mean, 'std': deployed.std}
  return {
    'model': json.dumps(dict(deployed.model)),
    'class_names': json.dumps(deployed.class_names),
    'layout': 'NHWC',
    'normalisation': 'included' if deployed.normalised else json.dumps(scaled),
  }


def _node(node: Node) -> onnx.NodeProto:
  attributes = {
    key: onnx.helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.dtype)
    else value
    for key, value in node.attributes.items()
  }
  return onnx.helper.make_node(
    node.op, node.inputs, [node.output], name=node.output, **attributes
  )
