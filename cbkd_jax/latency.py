"""How long a network takes for one image on this device."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from cbkd_jax import blocks
from cbkd_jax.blocks import Network, Tree

BATCH = 1  # images
_WARM_UP = 3  # runs
_RUNS = 200, 20  # at most, at least
_SECONDS = 2.0  # no more runs after these, roughly


class Latency(NamedTuple):
  """Milliseconds of a forward pass in eval mode, by its runs' quartiles."""

  median: float
  low: float
  high: float


def measure(
  network: Network, image_shape: tuple[int, int, int], device: Any
) -> Latency:
  """Compiles a network, with weights of no meaning, and times it.

  Args:
    network: the network.
    image_shape: (height, width, channels).
    device: where it is run, on a batch of `BATCH`.
  """
  variables = blocks.Variables(
    *jax.tree.map(_weights, tuple(blocks.shapes(network, image_shape)))
  )
  images = np.zeros((BATCH, *image_shape), np.float32)
  variables, images = jax.device_put((variables, images), device)
  run = jax.jit(lambda v, x: blocks.logits(network, v, x))
  for _ in range(_WARM_UP):
    run(variables, images).block_until_ready()
  most, least = _RUNS
  times: list[float] = []
  until = time.perf_counter() + _SECONDS
  while len(times) < most and (
    len(times) < least or time.perf_counter() < until
  ):
    start = time.perf_counter()
    run(variables, images).block_until_ready()
    times.append(1e3 * (time.perf_counter() - start))
  low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
  return Latency(float(median), float(low), float(high))


def _weights(leaf: jax.ShapeDtypeStruct) -> Tree:
  """Such that activations stay of one size: denormal numbers would be slow."""
  if len(leaf.shape) < 2:
    return np.ones(leaf.shape, leaf.dtype)
  fan_in = np.prod(leaf.shape[:-1])
  rng = np.random.default_rng(0)
  return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)
