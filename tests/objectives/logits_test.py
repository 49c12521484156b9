"""Log odds and two-way divergences, by hand and at their edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import logits

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_log_odds():
  # 1/2 against 1/4 + 1/4, and 1/4 against 3/4.
  x = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]] * 2))
  chosen = logits.is_class(jnp.asarray([0, 2]), x)
  np.testing.assert_array_equal(chosen, [[1, 0, 0], [0, 0, 1]])
  found = logits.log_odds(x, chosen)
  np.testing.assert_allclose(found, [0, -math.log(3)], atol=1e-6)


def test_two_way_kl():
  # 1/2 against 1/4.
  student, teacher = jnp.asarray([-math.log(3)]), jnp.zeros(1)
  expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
  found = logits.two_way_kl(student, teacher)
  assert found == pytest.approx(expected, rel=1e-6)


def test_finite_where_probabilities_are_zero():
  x = jnp.asarray([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4]])
  chosen = logits.is_class(jnp.asarray([0, 0]), x)

  @jax.jit
  @jax.value_and_grad
  def run(x):
    odds = logits.log_odds(x, chosen)
    return logits.two_way_kl(odds, -odds)

  value, grad = run(x)
  assert value > 1e3
  assert np.isfinite(grad).all()
