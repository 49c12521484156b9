"""NKD against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import nkd
from cbkd_jax.objectives.nkd import NormalizedKnowledgeDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')

RUN = jax.jit(jax.value_and_grad(nkd.nkd_loss))


@pytest.mark.parametrize(
  ('name', 'labels'),
  [
    ('nkd__cls_T1', 'labels'),
    ('nkd__cls_T2', 'labels'),
    ('nkd__cls_soft_labels', 'soft_labels'),
  ],
)
def test_published(name, labels):
  def loss(s, case):
    method = NormalizedKnowledgeDistillation(
      gamma=float(case['hp_gamma']), temperature=float(case['hp_temperature'])
    )
    views = (
      View(jnp.asarray(x), (), (), jnp.zeros(()))
      for x in (s, case['teacher_logits'])
    )
    return method.loss({}, *views, labels=jnp.asarray(case[labels]))

  published.check(name, lambda get: get('student_logits'), loss)


def test_by_hand():
  # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0.
  teacher = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]]))
  student = jnp.log(jnp.asarray([[1.0, 1.0, 2.0]]))
  target = -0.5 * math.log(1 / 4)
  others = -0.5 * math.log(1 / 3) - 0.5 * math.log(2 / 3)
  value, _ = RUN(student, teacher, jnp.asarray([0]), 3.0, 1.0)
  assert value == pytest.approx(target + 3 * others, rel=1e-5)


def test_the_others_part_is_stationary_at_the_teacher():
  x = jnp.asarray([[1.0, -2.0, 3.0, 0.0]])
  one, two = (
    RUN(x, x, jnp.asarray([2]), gamma, 2.0)[1] for gamma in (0.0, 5.0)
  )
  np.testing.assert_allclose(one, two, atol=1e-6)
  assert np.abs(one).max() > 1e-3


def test_finite_at_extremes():
  s = jnp.asarray([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [2.0, 2.0, 2.0]])
  t = jnp.asarray([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
  value, grad = RUN(s, t, jnp.asarray([0, 0, 1]), 1.5, 1.0)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'gamma': -1.0}, r'^nkd\.gamma = -1\.0: must be at least 0$'),
    ({'temperature': 0.0}, r'^nkd\.temperature = 0\.0: must be above 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    NormalizedKnowledgeDistillation(**options)
