"""RLD against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import kd, rld
from cbkd_jax.objectives.rld import RefinedLogitDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')


RUN = jax.jit(jax.value_and_grad(rld.rld_loss))


def view(logits):
  return View(jnp.asarray(logits), (), (), jnp.zeros(()))


@pytest.mark.parametrize(
  'name', ['rld__plain', 'rld__label_is_teacher_min_and_max', 'rld__C100_f32']
)
def test_published(name):
  def loss(s, case):
    method = RefinedLogitDistillation(
      alpha=float(case['hp_alpha']),
      beta=float(case['hp_beta']),
      temperature=float(case['hp_temperature']),
      alpha_temperature=float(case['hp_alpha_temperature']),
      standardize=bool(case['hp_logit_stand']),
      warmup=20.0,
    )
    return method.loss(
      {},
      view(s),
      view(case['teacher_logits']),
      labels=case['labels'],
      epoch=jnp.float32(20),
    )

  published.check(name, lambda get: get('student_logits'), loss)


def test_by_hand():
  # Teacher (1/2, 1/4, 1/8, 1/8), student (1/8, 1/2, 1/8, 1/4), label 1.
  teacher = jnp.log(jnp.asarray([[4.0, 2.0, 1.0, 1.0]]))
  student = jnp.log(jnp.asarray([[1.0, 4.0, 1.0, 2.0]]))
  label = jnp.asarray([1])
  # First choice 1/2 against the label's 1/2; among the last two classes
  # (1/2, 1/2) against (1/3, 2/3).
  masked = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
  value, _ = RUN(student, teacher, label, 3.0, 5.0, 1.0, 1.0)
  assert value == pytest.approx(5 * masked, rel=1e-5)
  # Label 0: against the label's 1/8.
  confidence = 0.5 * math.log(4) + 0.5 * math.log(4 / 7)
  value, _ = RUN(student, teacher, jnp.asarray([0]), 3.0, 0.0, 1.0, 1.0)
  assert value == pytest.approx(3 * confidence, rel=1e-5)
  # At temperature 2 twice the logits give the same probabilities, times 4.
  value, _ = RUN(2 * student, 2 * teacher, jnp.asarray([0]), 3.0, 0.0, 1.0, 2.0)
  assert value == pytest.approx(4 * 3 * confidence, rel=1e-5)


def test_standardizes_and_warms_up():
  s, t = (jnp.asarray(x) for x in ([[1.0, 2.0, 5.0]], [[3.0, 2.0, -1.0]]))
  label = jnp.asarray([1])
  method = RefinedLogitDistillation(standardize=True)
  value = jax.jit(
    lambda s: method.loss(
      {}, view(s), view(t), labels=label, epoch=jnp.float32(5)
    )[0]
  )(s)
  expected, _ = RUN(
    kd.standardize(s), kd.standardize(t), label, 1.0, 8.0, 4.0, 1.0
  )
  assert value == pytest.approx(float(expected) / 4, rel=1e-5)


def test_of_a_teacher_that_is_right_with_itself_is_zero():
  x = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])
  value, grad = RUN(x, x, jnp.asarray([2, 0]), 1.0, 8.0, 4.0, 1.0)
  assert value == pytest.approx(0, abs=1e-6)
  np.testing.assert_allclose(grad, np.zeros((2, 3)), atol=1e-6)


def test_finite_at_extremes():
  # The last two rows: everything masked, by ties.
  s = jnp.asarray(
    [[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [2.0, 1.0, 0.0], [2.0, 2.0, 2.0]]
  )
  t = jnp.asarray(
    [[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]
  )
  labels = jnp.asarray([1, 0, 1, 2])
  value, grad = RUN(s, t, labels, 1.0, 8.0, 4.0, 1.0)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  value, grad = RUN(s[2:], t[2:], labels[2:], 0.0, 8.0, 4.0, 1.0)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros((2, 3)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'alpha': -1.0}, r'^rld\.alpha = -1\.0: must be at least 0$'),
    (
      {'alpha_temperature': 0.0},
      r'^rld\.alpha_temperature = 0\.0: must be above 0$',
    ),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    RefinedLogitDistillation(**options)
