"""ONNX files whose layers compute in 8-bit integers, by ONNX Runtime's tools.

Its own quantizer does it: kernels of convolutions and dense layers get one
scale per output channel and are symmetric around 0; what layers are given and
give is uint8, with one scale and one shift per tensor, from the smallest to the
largest number that calibration images lead to. Sums, normalisations and
attention stay in float32. On digits its other two ways to choose ranges
(entropy, percentile) came no closer to float32, and no layer had to stay in it.

Kernels are then stored as uint8 around 128, the same numbers. ONNX Runtime
multiplies uint8 by int8 with an instruction that saturates on x86 processors
without VNNI: on one of them the digits lost 1.4 points of accuracy by it, and
logits were wrong by up to 5. Products of uint8 with uint8 are exact everywhere.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

_LAYERS = ('Conv', 'Gemm', 'MatMul')
# What hands integers on as they are, so that they stay integers from layer to
# layer. Not sums: to round a ViT's residual sums doubled its logits' error.
_BETWEEN = ('Relu', 'Clip', 'MaxPool', 'Concat', 'Reshape', 'Transpose')
_MIDDLE = 128  # of uint8

_BATCH = 32


def quantize(
  source: Path, target: Path, name: str, images: np.ndarray
) -> dict[str, Any]:
  """Writes the int8 form of an ONNX file.

  Args:
    source: a file in float32, of any batch size.
    target: the file to write.
    name: of its input.
    images: to calibrate by, as the file wants them.

  Returns:
    What was done, for the JSON.
  """
  import onnx
  from onnxruntime import quantization
  from onnxruntime.quantization import shape_inference

  class Reader(quantization.CalibrationDataReader):
    def __init__(self) -> None:
      starts = range(0, len(images), _BATCH)
      self._batches = ({name: images[i : i + _BATCH]} for i in starts)

    def get_next(self) -> dict[str, np.ndarray] | None:
      return next(self._batches, None)

  with tempfile.TemporaryDirectory() as directory:
    ready = Path(directory) / 'ready.onnx'
    # Infers shapes. What can be fused has been, and other than ONNX's own
    # inference would take one more library.
    shape_inference.quant_pre_process(
      source, ready, skip_optimization=True, skip_symbolic_shape=True
    )
    quantization.quantize_static(
      ready,
      target,
      Reader(),
      per_channel=True,
      weight_type=quantization.QuantType.QInt8,
      activation_type=quantization.QuantType.QUInt8,
      calibrate_method=quantization.CalibrationMethod.MinMax,
      op_types_to_quantize=[*_LAYERS, *_BETWEEN],
      # Not products of two activations: attention stays in float32.
      extra_options={'MatMulConstBOnly': True},
    )
  model = onnx.load(target)
  _shift(model)
  onnx.checker.check_model(model, full_check=True)
  onnx.save(model, target)
  return {
    'method': 'MinMax',
    'weights': 'int8 per output channel, symmetric; stored as uint8 around 128',
    'activations': 'uint8 per tensor, affine',
    'float32_bytes': source.stat().st_size,
  }


def _shift(model: Any) -> None:
  """Stores int8 arrays, and their zeros, as uint8."""
  from onnx import TensorProto, numpy_helper

  for tensor in model.graph.initializer:
    if tensor.data_type == TensorProto.INT8:
      shifted = numpy_helper.to_array(tensor).astype(np.int16) + _MIDDLE
      tensor.CopyFrom(
        numpy_helper.from_array(shifted.astype(np.uint8), tensor.name)
      )
