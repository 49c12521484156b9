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
  stream = np.empty(steps * batch_size, np.int32)
  start = first_step * batch_size
  done = 0
  while done < len(stream):
    epoch, offset = divmod(start + done, num_examples)
    part = _permutation(seed, epoch, num_examples)[offset:]
    part = part[: len(stream) - done]
    stream[done : done + len(part)] = part
    done += len(part)
  return stream.reshape(steps, batch_size)


# Calls go on where the last one ended, at times over the end of an epoch.
@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
  # A counter-based generator: any epoch's permutation is found without the
  # ones before.
  key = np.array([seed, epoch], np.uint64)
  rng = np.random.Generator(np.random.Philox(key=key))
  permutation = rng.permutation(num_examples).astype(np.int32)
  permutation.flags.writeable = False
  return permutation
