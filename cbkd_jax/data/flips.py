"""Alternating flips: who is mirrored in which epoch.

Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU, 2024: random flips
show some images the same way round for several epochs; alternating ones show
every image both ways in any two consecutive epochs.
"""

import math

import jax

# Of the phase's key, from which the steps fold in their numbers, an int32.
_FLIPS = 2**32 - 1


def alternating(
  phase_rng: jax.Array,
  step: jax.Array,
  indices: jax.Array,
  positions: jax.Array,
  batch_size: int,
  train_size: int,
) -> jax.Array:
  """Which examples are mirrored: at random at first, then in turn.

  A function of the phase's key and the step alone: the same in a resumed run
  and on any number of devices.

  Args:
    phase_rng: the phase's key.
    step: steps taken in the phase, [] int32.
    indices: int32 [n], the examples' positions in the train split.
    positions: int32 [n], their positions in the global batch.
    batch_size: examples per step, over all devices together.
    train_size: examples in the train split.

  Returns:
    bool [n].
  """
  rng = jax.random.fold_in(phase_rng, _FLIPS)
  first = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(rng, i)))
  # Whether an epoch is odd repeats itself after so many steps; without the
  # remainder the product would overflow after 2**31 examples.
  period = 2 * train_size // math.gcd(2 * train_size, batch_size)
  epochs = ((step % period) * batch_size + positions) // train_size
  return first(indices) ^ (epochs % 2 == 1)
