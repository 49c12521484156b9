"""Alternating flips against the training stream's own epochs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.data import flips, sampler

pytestmark = pytest.mark.usefixtures('quick_compilation')

TRAIN_SIZE, BATCH, STEPS = 50, 12, 21  # five epochs, whose ends cut batches


@jax.jit
def mirrored(rng, steps, indices, positions):
  one = jax.vmap(flips.alternating, (None, 0, 0, None, None, None))
  return one(rng, steps, indices, positions, BATCH, TRAIN_SIZE)


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
  # Nothing depends on where a replica's share of the batch begins.
  shift = np.r_[3:BATCH, :3]
  shifted = mirrored(jax.random.key(0), steps, rows[:, shift], positions[shift])
  np.testing.assert_array_equal(shifted, found[:, shift])


def test_a_step_whose_examples_are_more_than_an_int32_can_count():
  steps = 2**31 - 1 - np.arange(STEPS)[::-1]
  indices = np.full((STEPS, BATCH), 3)
  positions = np.arange(BATCH)
  found = mirrored(jax.random.key(0), np.int32(steps), indices, positions)
  epochs = (steps[:, None] * BATCH + positions) // TRAIN_SIZE  # int64
  assert len(set(epochs.ravel())) > 4
  first = mirrored(jax.random.key(0), np.zeros(STEPS, int), indices, positions)
  np.testing.assert_array_equal(found, first[0, 0] ^ (epochs % 2 == 1))
