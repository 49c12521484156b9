"""WSLD against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import wsld
from cbkd_jax.objectives.wsld import WeightedSoftLabelDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')

RUN = jax.jit(jax.value_and_grad(wsld.wsld_loss))


def test_published():
  def loss(s, case):
    method = WeightedSoftLabelDistillation(
      temperature=float(case['hp_temperature']), alpha=float(case['hp_alpha'])
    )
    views = (
      View(jnp.asarray(x), (), (), jnp.zeros(()))
      for x in (s, case['teacher_logits'])
    )
    return method.loss({}, *views, labels=case['labels'])

  published.check('wsld__cls_a', lambda get: get('student_logits'), loss)


def test_by_hand():
  # Label 0: teacher 3/4, student 1/4 at T = 1; at T = 2 half the logits.
  teacher = jnp.asarray([[math.log(3), 0.0]])
  student = jnp.asarray([[-math.log(3), 0.0]])
  weight = 1 - math.exp(-math.log(4) / math.log(4 / 3))
  q = math.sqrt(3) / (1 + math.sqrt(3))
  soft = -q * math.log(1 - q) - (1 - q) * math.log(q)
  value, _ = RUN(student, teacher, jnp.asarray([0]), 2.5, 2.0)
  assert value == pytest.approx(2.5 * 4 * weight * soft, rel=1e-4)


def test_stationary_at_the_teacher():
  x = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
  _, grad = RUN(x, x, jnp.asarray([2, 1]), 2.25, 4.0)
  np.testing.assert_allclose(grad, np.zeros((2, 3)), atol=1e-6)


def test_finite_at_extremes():
  # Rows: teacher sure and right (cross-entropy 0), both, teacher wrong.
  s = jnp.asarray([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [2.0, 2.0, 2.0]])
  t = jnp.asarray([[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]])
  value, grad = RUN(s, t, jnp.asarray([0, 0, 0]), 1.0, 1.0)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'alpha': -1.0}, r'^wsld\.alpha = -1\.0: must be at least 0$'),
    ({'temperature': 0.0}, r'^wsld\.temperature = 0\.0: must be above 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    WeightedSoftLabelDistillation(**options)
