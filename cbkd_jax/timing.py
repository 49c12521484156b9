"""How long something takes: in turns, and a network for one image."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from cbkd_jax import blocks
from cbkd_jax.blocks import Network, Tree

BATCH = 1  # images
_RUNS = 200, 20  # at most, at least
_SECONDS = 2.0  # no more runs after these, roughly


class Latency(NamedTuple):
  """Milliseconds of a forward pass in eval mode, by its runs' quartiles."""

  median: float
  low: float
  high: float

  @classmethod
  def of(cls, seconds: np.ndarray) -> 'Latency':
    """From the seconds of its runs, `[runs]`."""
    low, median, high = np.quantile(1e3 * seconds, (0.25, 0.5, 0.75))
    return cls(float(median), float(low), float(high))


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
  most, least = _RUNS
  times = take_turns(
    {'network': timed(lambda: run(variables, images))},
    most=most,
    least=least,
    seconds=_SECONDS,
  )
  return Latency.of(times['network'])


def _weights(leaf: jax.ShapeDtypeStruct) -> Tree:
  """Such that activations stay of one size: denormal numbers would be slow."""
  if len(leaf.shape) < 2:
    return np.ones(leaf.shape, leaf.dtype)
  fan_in = np.prod(leaf.shape[:-1])
  rng = np.random.default_rng(0)
  return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(leaf.dtype)


def timed(call: Callable[[], Any]) -> Callable[[], float]:
  """The seconds until a call's arrays are there."""

  def run() -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began

  return run


def take_turns(
  runs: Mapping[str, Callable[[], float]],
  *,
  most: int,
  least: int,
  seconds: float,
  warm_up: int = 3,
) -> dict[str, np.ndarray]:
  """Times several things one after the other, again and again.

  So a slow moment of the machine meets all of them, and the quotients within
  a round tell more than those of two averages.

  Args:
    runs: by name; each runs once and says how many seconds that took.
    most: rounds, at most.
    least: rounds, at least, if `most` allows.
    seconds: no round beyond the least begins after these.
    warm_up: rounds before them that don't count.

  Returns:
    Seconds of each run, by name, `[rounds]`.
  """
  for _ in range(warm_up):
    for run in runs.values():
      run()
  found: dict[str, list[float]] = {name: [] for name in runs}
  began = time.perf_counter()
  for done in range(most):
    if done >= least and time.perf_counter() - began > seconds:
      break
    # Places change: whoever comes after another finds other caches warm.
    for name in list(runs)[:: 1 if done % 2 == 0 else -1]:
      found[name].append(runs[name]())
  return {name: np.array(values) for name, values in found.items()}
