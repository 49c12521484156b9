"""Relations between the examples of a batch, by hand and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import relations

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Two equal rows, a row of zeros, and the opposite of the first.
ROWS = np.asarray([[3, 4], [3, 4], [0, 0], [-3, -4]], np.float32)


def test_directions():
  found = relations.directions(jnp.asarray(ROWS), 0.0)
  expected = [[0.6, 0.8], [0.6, 0.8], [0, 0], [-0.6, -0.8]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  # The constant is added to the norm, not put under the root.
  found = relations.directions(jnp.asarray(ROWS[:1]), 5.0)
  np.testing.assert_allclose(found, [[0.3, 0.4]], rtol=1e-6)


def test_the_gradient_of_a_zero_direction_is_zero():
  def loss(x):
    return jnp.sum(relations.directions(x, 1e-12) * jnp.asarray([[1.0, 2.0]]))

  grad = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(ROWS)))
  np.testing.assert_array_equal(grad[2], [0, 0])
  # That of x.(1, 2)/|x| is ((1, 2) - u (u.(1, 2)))/|x|, u = (0.6, 0.8).
  np.testing.assert_allclose(grad[0], [-0.064, 0.048], atol=1e-6)


def test_squared_distances():
  found = relations.squared_distances(jnp.asarray(ROWS), 0.5)
  expected = [
    [0.5, 0.5, 25, 100],
    [0.5, 0.5, 25, 100],
    [25, 25, 0.5, 25],
    [100, 100, 25, 0.5],
  ]
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_equal_rows_have_distance_zero_however_long_they_are():
  x = 1e3 * np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
  found = relations.squared_distances(jnp.asarray(np.repeat(x, 3, axis=0)))
  np.testing.assert_array_equal(found, np.zeros((3, 3)))


def test_cosine_similarities():
  found = relations.cosine_similarities(jnp.asarray(ROWS), 1e-7)
  expected = [
    [1, 1, 0.5, 0],
    [1, 1, 0.5, 0],
    [0.5, 0.5, 0.5, 0.5],
    [0, 0, 0.5, 1],
  ]
  np.testing.assert_allclose(found, expected, atol=1e-6)
  assert np.min(found) >= 0


def test_rows_and_diagonals():
  x = jnp.asarray([[1.0, 3.0], [2.0, 2.0]])
  np.testing.assert_array_equal(relations.without_diagonal(x), [[0, 3], [2, 0]])
  np.testing.assert_allclose(relations.shares(x), [[0.25, 0.75], [0.5, 0.5]])
