"""What a device could do at best: from a table, or measured on the spot."""

import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Peak(NamedTuple):
  """Of one device.

  Attributes:
    flops: floating-point operations per second, dense matrix products.
    bytes: per second, to and from its main memory.
    source: 'data sheet' or 'measured'.
  """

  flops: float
  bytes: float
  source: str


# By words of JAX's device_kind, the longer first where one holds the other:
# tera-operations per second in bfloat16 and in float32 as XLA computes it by
# default (TF32 on GPUs, bfloat16 on TPUs), terabytes per second. From the
# vendors' data sheets, without sparsity.
_KNOWN = {
  'B200': (2250, 1100, 8.0),
  'H200': (989, 494, 4.8),
  'H100 PCIe': (756, 378, 2.0),
  'H100 NVL': (835, 417, 3.9),
  'H100': (989, 494, 3.35),
  'A100-SXM4-80GB': (312, 156, 2.04),
  'A100 80GB PCIe': (312, 156, 1.94),
  'A100': (312, 156, 1.56),
  'L40S': (362, 183, 0.86),
  'L4': (121, 60, 0.3),
  'RTX 4090': (165, 83, 1.01),
  'RTX 3090': (71, 36, 0.94),
  'TPU v6': (918, 918, 1.64),
  'TPU v5p': (459, 459, 2.77),
  'TPU v5 lite': (197, 197, 0.82),
  'TPU v5': (459, 459, 2.77),
  'TPU v4': (275, 275, 1.23),
}


def peak(device: Any, dtype: str) -> Peak:
  """The best a device can do.

  Args:
    device: a JAX device.
    dtype: what is computed in, 'float32' or 'bfloat16'.

  Returns:
    Figures of the data sheet, or where the device is not known, those of a
    matrix product and of a copy, measured now.
  """
  for kind, (bfloat16, float32, bandwidth) in _KNOWN.items():
    if re.search(rf'\b{kind}\b', device.device_kind):
      tera = bfloat16 if dtype == 'bfloat16' else float32
      return Peak(tera * 1e12, bandwidth * 1e12, 'data sheet')
  return Peak(*_measure(device, dtype), 'measured')


def _measure(device: Any, dtype: str) -> tuple[float, float]:
  """(operations per second, bytes per second)."""
  side, mib = 2048, 128
  with jax.default_device(device):
    square = jnp.ones((side, side), dtype)
    product = jax.jit(jnp.matmul).lower(square, square).compile()
    seconds = _best(lambda: product(square, square))
    flops = 2 * side**3 / seconds
    # Not a plain copy, which XLA may do without.
    long = jnp.ones((mib, 2**18), jnp.float32)
    copy = jax.jit(lambda x: x + 1).lower(long).compile()
    seconds = _best(lambda: copy(long))
  return flops, 2 * mib * 2**20 / seconds


def _best(call: Callable[[], jax.Array], repeats: int = 7) -> float:
  """The shortest of several calls, in seconds."""
  seconds = []
  for _ in range(repeats):
    began = time.perf_counter()
    jax.block_until_ready(call())
    seconds.append(time.perf_counter() - began)
  return min(seconds)
