"""Which examples each training step sees: the training stream."""

from functools import lru_cache

import numpy as np


def indices(
  seed: int, num_examples: int, batch_size: int, first_step: int, steps: int
) -> np.ndarray:
  """The examples of some consecutive training steps.

  The stream is one permutation of all examples per epoch after the other, cut
  into batches wherever they end: every example comes exactly once per epoch,
  no remainder is dropped, and a batch may hold the end of one epoch and the
  start of the next. Being a pure function of its arguments, a resumed run
  sees what the uninterrupted one would have seen.

  Args:
    seed: chooses the stream, >= 0.
    num_examples: size of the train split.
    batch_size: examples per step, over all devices together.
    first_step: number of the first step, from 0.
    steps: how many steps.

  Returns:
    Positions in the train split, int32 [steps, batch_size].
  """
  assert min(seed, first_step, steps) >= 0, (seed, first_step, steps)
  assert min(num_examples, batch_size) > 0, (num_examples, batch_size)
  start = first_step * batch_size
  positions = np.arange(start, start + steps * batch_size)
  return at(seed, num_examples, positions).reshape(steps, batch_size)


def at(seed: int, num_examples: int, positions: np.ndarray) -> np.ndarray:
  """The examples at any positions of the stream.

  Args:
    seed: as for `indices`.
    num_examples: size of the train split.
    positions: `step * batch_size + position in the batch`, int64 [n].

  Returns:
    Positions in the train split, int32 [n].
  """
  found = np.empty(len(positions), np.int32)
  epochs, offsets = np.divmod(positions, num_examples)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    found[here] = _permutation(seed, int(epoch), num_examples)[offsets[here]]
  return found


def rows(
  seed: int,
  num_examples: int,
  batch_size: int,
  first_step: int,
  steps: int,
  views: int | None,
) -> np.ndarray:
  """The same stream, each example in one of its fixed views.

  Every epoch draws a view for every example. Without fixed views it is
  `indices` itself.

  Args:
    seed: as for `indices`.
    num_examples: size of the train split.
    batch_size: examples per step, over all devices together.
    first_step: number of the first step, from 0.
    steps: how many steps.
    views: how many there are of each example; None: they are not fixed.

  Returns:
    `view * num_examples + example`, int32 [steps, batch_size].
  """
  found = indices(seed, num_examples, batch_size, first_step, steps)
  if views is None:
    return found
  assert 0 < views * num_examples < 2**31, (views, num_examples)
  found = found.ravel()
  start = first_step * batch_size
  epochs = np.arange(start, start + len(found)) // num_examples
  for epoch in np.unique(epochs):
    at = epochs == epoch
    drawn = _drawn_views(seed, int(epoch), num_examples, views)
    found[at] += num_examples * drawn[found[at]]
  return found.reshape(steps, batch_size)


# Calls go on where the last one ended, at times over the end of an epoch.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  permutation = _rng(seed, epoch, 0).permutation(num_examples)
  permutation = permutation.astype(np.int32)
  permutation.flags.writeable = False
  return permutation


@lru_cache(maxsize=2)
def _drawn_views(
  seed: int, epoch: int, num_examples: int, views: int
) -> np.ndarray:
  drawn = _rng(seed, epoch, 1).integers(views, size=num_examples)
  drawn = drawn.astype(np.int32)
  drawn.flags.writeable = False
  return drawn


def _rng(seed: int, epoch: int, purpose: int) -> np.random.Generator:
  # Counter-based: any epoch's numbers are found without the ones before. The
  # counter's high word keeps two purposes far apart.
  key = np.array([seed, epoch], np.uint64)
  counter = np.array([0, 0, 0, purpose], np.uint64)
  return np.random.Generator(np.random.Philox(key=key, counter=counter))
