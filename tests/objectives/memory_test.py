"""Banks of embeddings, and the negatives drawn from them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import memory

pytestmark = pytest.mark.usefixtures('quick_compilation')

TRAIN_LABELS = np.asarray([2, 0, 1, 1, 2, 2, 0, 1, 2, 0, 3, 2])


def test_negatives_are_of_all_other_classes():
  draw = jax.jit(memory.draw_negatives, static_argnums=3)
  labels = jnp.arange(4)
  keys = jax.random.split(jax.random.key(0), 4)
  drawn = np.asarray(draw(keys, labels, jnp.asarray(TRAIN_LABELS), 4000))
  assert drawn.shape == (4, 4000)
  for row, label in zip(drawn, range(4)):
    others = np.flatnonzero(label != TRAIN_LABELS)
    found, counts = np.unique(row, return_counts=True)
    np.testing.assert_array_equal(found, others)
    # Uniform: about 4000 / len(others) each, five standard deviations.
    expected = 4000 / len(others)
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
  # Of a single class, examples of that class: there must be some.
  drawn = draw(keys, labels, jnp.full(12, 2), 4000)
  assert ((drawn >= 0) & (drawn < 12)).all()


def test_bank_rows_of_an_example_that_comes_twice():
  bank = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  embedded = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
  new = jax.jit(memory.update_bank)(bank, jnp.asarray([2, 1, 2]), embedded, 0.5)
  half = math.sqrt(0.5)
  last = np.asarray([-0.2, 0.4])
  expected = [[1, 0], [half, half], last / np.linalg.norm(last)]
  np.testing.assert_allclose(new, np.asarray(expected), rtol=1e-6)


def test_similarities_are_to_the_chosen_rows():
  bank = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  embedded = jnp.asarray([[1.0, 2.0], [-1.0, 0.0]])
  chosen = jnp.asarray([[2, 0], [1, 2]])

  def total(embedded, bank):
    found = memory.similarities(embedded, bank, chosen)
    return jnp.sum(found), found

  run = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))
  (_, found), (grad, of_bank) = run(embedded, bank)
  np.testing.assert_allclose(found, [[2.2, 1.0], [0.0, -0.6]], atol=1e-6)
  np.testing.assert_allclose(grad, [[1.6, 0.8], [0.6, 1.8]], atol=1e-6)
  assert not np.any(of_bank)
