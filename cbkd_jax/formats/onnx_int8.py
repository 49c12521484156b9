"""An ONNX file whose layers compute in 8-bit integers, by ONNX Runtime's tools.

Its own quantizer does it: kernels of convolutions and dense layers get one
scale per output channel and are symmetric around 0; what goes between layers
is uint8, with one scale and one shift per tensor, from the smallest to the
largest number that calibration images give. Measured on digits, its other two
ways to choose ranges (entropy, percentile) were no better, and no layer had to
stay in floating point.

Kernels are then stored as uint8 around 128, the same numbers. ONNX Runtime
multiplies uint8 by int8 with an instruction that saturates on x86 processors
without VNNI: one of them lost 1.4 points of accuracy by it, and differed by
half of the largest logit. Products of uint8 with uint8 are exact everywhere.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# Around kernels everything that hands integers on as they are, so that
# integers stay integers from layer to layer.
_LAYERS = ('Conv', 'Gemm', 'MatMul')
_BETWEEN = ('Add', 'Relu', 'Clip', 'MaxPool', 'Concat', 'Reshape', 'Transpose')
_MIDDLE = 128  # of uint8

_BATCH = 32


def quantize(source: Path, target: Path, images: np.ndarray) -> dict[str, Any]:
  """Writes the int8 form of an ONNX file.

  Args:
    source: a file in float32, of one input and any batch size.
    target: the file to write.
    images: to calibrate by, as the file wants them.

  Returns:
    What was done, for the JSON.
  """
  import onnx
  from onnxruntime import quantization
  from onnxruntime.quantization import shape_inference

  with tempfile.TemporaryDirectory() as directory:
    ready = Path(directory) / 'ready.onnx'
    # Infers shapes; what can be fused has been, and other than ONNX's own
    # inference would take one more library.
    shape_inference.quant_pre_process(
      source, ready, skip_optimization=True, skip_symbolic_shape=True
    )
    quantization.quantize_static(
      ready,
      target,
      _reader(onnx.load(source).graph.input[0].name, images),
      per_channel=True,
      weight_type=quantization.QuantType.QInt8,
      activation_type=quantization.QuantType.QUInt8,
      calibrate_method=quantization.CalibrationMethod.MinMax,
      op_types_to_quantize=[*_LAYERS, *_BETWEEN],
      # Not products of two activations: attention stays in floating point.
      extra_options={'MatMulConstBOnly': True},
    )
  model = onnx.load(target)
  _shift(model)
  onnx.checker.check_model(model)
  onnx.save(model, target)
  return {
    'method': 'MinMax',
    'weights': 'int8 per output channel, symmetric; stored as uint8 around 128',
    'activations': 'uint8 per tensor, affine',
    'float_layers': [],
    'float32_bytes': source.stat().st_size,
  }


def _shift(model: Any) -> None:
  """Stores int8 arrays, and their zeros, as uint8."""
  from onnx import TensorProto, numpy_helper

  for tensor in model.graph.initializer:
    if tensor.data_type == TensorProto.INT8:
      shifted = numpy_helper.to_array(tensor).astype(np.int16) + _MIDDLE
      shifted = numpy_helper.from_array(shifted.astype(np.uint8), tensor.name)
      tensor.CopyFrom(shifted)


def _reader(name: str, images: np.ndarray) -> Any:
  """Hands batches to the quantizer."""
  from onnxruntime.quantization import CalibrationDataReader

  class Reader(CalibrationDataReader):
    def __init__(self) -> None:
      self._batches = _batches(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
      batch = next(self._batches, None)
      return None if batch is None else {name: batch}

  return Reader()


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
  for start in range(0, len(images), _BATCH):
    yield images[start : start + _BATCH]
