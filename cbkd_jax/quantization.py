"""A network in int8: as it trains, and as it would be on real images.

What an exported file rounds, `models.fake_quant` rounds in floating point, so
that a thaw can train with it and its result can be evaluated without a file.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np

from cbkd_jax import faithful, sharding
from cbkd_jax.blocks import Network, Tree, Variables
from cbkd_jax.data import Split, Streamed
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.models.fake_quant import Observed, Quantized, Ranges
from cbkd_jax.replicas import Replicas

# As many as an export takes if not told otherwise.
CALIBRATION_EXAMPLES = 512


def calibration_images(train: Split | Streamed) -> np.ndarray:
  """uint8 images from all over a train split, which may be sorted."""
  return faithful.spread(train, CALIBRATION_EXAMPLES)[0]


def training(network: Network, axis_name: str | None) -> Network:
  """The network as a quantisation-aware phase trains it.

  Args:
    network: without a quantisation.
    axis_name: the replicas' axis, to round by the global batch; None rounds
      by each replica's own.
  """
  return _each(network, [Quantized(part, axis_name) for part in network.parts])


def calibrated(network: Network, ranges: Sequence[Ranges]) -> Network:
  """The network in eval mode, its inputs rounded by known ranges.

  Args:
    network: without a quantisation.
    ranges: per part, from `calibrate`.
  """
  return _each(
    network,
    [Quantized(part, ranges=r) for part, r in zip(network.parts, ranges)],
  )


def calibrate(
  network: Network,
  variables: Variables,
  images: np.ndarray,
  augmentation: Augmentation,
  replicas: Replicas,
  batch_size: int,
) -> tuple[Ranges, ...]:
  """What each layer is given, smallest to largest, over all images.

  Args:
    network: without a quantisation.
    variables: its variables, on the replicas.
    images: uint8 `[examples, height, width, channels]`.
    augmentation: holds mean and std; nothing random happens.
    replicas: the devices, of which each sees all images.
    batch_size: examples per call.

  Returns:
    Per part the ranges of its layers' inputs.
  """
  observed = _each(network, [Observed(part) for part in network.parts])
  observed = sharding.gathered(observed, replicas)
  size, calls = min(batch_size, len(images)), []
  for start in range(0, len(images), size):
    # The last batch is filled up with its last image.
    rows = np.minimum(np.arange(start, start + size), len(images) - 1)
    batch = replicas.put(images[rows])
    calls.append(
      replicas.fetch(_observe(observed, augmentation, variables, batch))
    )
  return tuple(
    tuple(
      (
        name,
        float(min(found[name][0] for found in part)),
        float(max(found[name][1] for found in part)),
      )
      for name in part[0]
    )
    for part in zip(*calls)
  )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _observe(
  observed: Network,
  augmentation: Augmentation,
  variables: Variables,
  images: jax.Array,
) -> list[Tree]:
  x, found = normalise(images, augmentation), []
  for part, params, batch_stats in zip(observed.parts, *variables):
    own = {'params': params}
    if batch_stats:
      own['batch_stats'] = batch_stats
    out, ranges = part.apply(own, x, train=False)
    found.append(ranges)
    x = getattr(out, 'output', None)
  return found


def _each(network: Network, parts: Sequence[object]) -> Network:
  *blocks, head = parts
  return dataclasses.replace(network, blocks=tuple(blocks), head=head)
