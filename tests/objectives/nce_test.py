"""Noise-contrastive estimation, by hand and at its edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import nce

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_by_hand():
  # p = 1/2 of the positive and 1/4 of both negatives, m = 2/8 (e is small).
  logits = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]]))
  expected = -math.log(0.5 / 0.75) - 2 * math.log(0.25 / 0.5)
  value = nce.nce_loss(logits, jnp.float32(4), 8)
  assert value == pytest.approx(expected, rel=1e-5)


def test_finite_at_extremes():
  logits = jnp.asarray([[0.0, 85.0, -85.0], [-500.0, 500.0, 0.0]])
  call = jax.jit(jax.value_and_grad(lambda x, z: nce.nce_loss(x, z, 50)))
  for z in 1e-30, 1e30:
    value, grad = call(logits, jnp.float32(z))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_the_first_normaliser_is_over_all_replicas():
  logits = jnp.log(jnp.asarray([[[1.0, 3.0]], [[2.0, 6.0]]]))
  assert nce.first_normaliser(logits[0], 10) == pytest.approx(20, rel=1e-6)
  found = jax.vmap(
    lambda x: nce.first_normaliser(x, 10, 'replicas'), axis_name='replicas'
  )(logits)
  np.testing.assert_allclose(found, [30, 30], rtol=1e-6)
