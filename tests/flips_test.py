"""Alternating flips against the training stream's own epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.data import flips, sampler

pytestmark = pytest.mark.usefixtures('quick_compilation')

TRAIN_SIZE, BATCH, STEPS = 50, 12, 21  # five epochs, whose ends cut batches


def mirrored(rng, steps, indices, positions, batch=BATCH, size=TRAIN_SIZE):
  one = jax.vmap(flips.alternating, (None, 0, 0, None, None, None))
  return np.asarray(one(rng, steps, indices, positions, batch, size))


def test_at_random_at_first_then_in_turn():
  rows = sampler.indices(0, TRAIN_SIZE, BATCH, 0, STEPS)
  steps, positions = jnp.arange(STEPS), jnp.arange(BATCH)
  found = mirrored(jax.random.key(0), steps, rows, positions)
  ways = {i: [] for i in range(TRAIN_SIZE)}
  for index, flipped in zip(rows.ravel(), found.ravel()):
    ways[index].append(bool(flipped))
  for turns in ways.values():
    assert len(turns) >= 5
    assert turns == [turns[0] ^ (i % 2 == 1) for i in range(len(turns))]
  # About half of the images, others with another key.
  first = [turns[0] for turns in ways.values()]
  assert 15 <= sum(first) <= 35
  other = mirrored(jax.random.key(1), steps, rows, positions)
  assert 0.3 < np.mean(other != found) < 0.7
  # A replica's share of the batch.
  share = mirrored(jax.random.key(0), steps, rows[:, 3:6], positions[3:6])
  np.testing.assert_array_equal(share, found[:, 3:6])


def test_a_step_whose_examples_are_more_than_an_int32_can_count():
  for step in 2**31 - 1, 2**31 - 1000:
    at = jnp.asarray([0, step], jnp.int32)
    indices, positions = jnp.full((2, 8), 3), jnp.arange(8) * 60
    found = mirrored(jax.random.key(0), at, indices, positions, 500, 777)
    epochs = [(step * 500 + 60 * i) // 777 for i in range(8)]
    odd = np.array(epochs) % 2 == 1
    np.testing.assert_array_equal(found[1], found[0, 0] ^ odd)
