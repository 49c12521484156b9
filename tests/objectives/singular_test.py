"""Singular vectors against a decomposition, and their signs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import singular

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_they_are_those_of_a_decomposition():
  random = np.random.default_rng(0)
  for shape in (2, 6, 4), (2, 4, 6):
    x = random.normal(size=shape).astype(np.float32)
    values, vectors = jax.jit(lambda x: singular.singular(x, 9))(x)
    _, s, vh = np.linalg.svd(x, full_matrices=False)
    length = np.linalg.norm(s, axis=1, keepdims=True)
    np.testing.assert_allclose(values, s / length, rtol=1e-5)
    theirs = vh.transpose(0, 2, 1)
    signs = np.sign(np.sum(vectors * theirs, axis=1, keepdims=True))
    np.testing.assert_allclose(vectors * signs, theirs, atol=1e-5)
  # Rank 2, in both shapes.
  one, two = random.normal(size=(1, 6, 2)), random.normal(size=(1, 2, 4))
  for x in one @ two, (one @ two).swapaxes(1, 2):
    values, vectors = singular.singular(jnp.asarray(x, jnp.float32), 4)
    np.testing.assert_array_equal(values[0] > 0, [True, True, False, False])
    np.testing.assert_allclose(
      jnp.sum(vectors[0] ** 2, axis=0), [1, 1, 0, 0], rtol=1e-5
    )


def test_signs_are_fixed():
  vectors = jnp.asarray([[[0.6, 0.0], [-0.8, 1.0]]])
  expected = np.asarray([[[-0.6, 0.0], [0.8, 1.0]]], np.float32)
  for x in vectors, -vectors:
    np.testing.assert_array_equal(singular.fix_signs(x), expected)


def test_equal_values_have_a_finite_gradient():
  """Of an identity, of zeros, and the usual one where values differ."""
  random = np.random.default_rng(0)
  weights = random.normal(size=(3, 3)).astype(np.float32)
  x = np.stack([np.eye(3), np.zeros((3, 3)), np.diag([1, 2, 3])])

  @jax.jit
  @jax.grad
  def grad(x):
    values, vectors = singular.singular(x, 3)
    weighted = singular.fix_signs(vectors) * weights[None]
    return jnp.sum(values) + jnp.sum(weighted)

  x = x.astype(np.float32)
  found = grad(x)
  assert np.isfinite(found).all()
  assert not found[1].any()
