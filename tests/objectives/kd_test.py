"""KD and logit standardisation against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.objectives import kd

pytestmark = pytest.mark.usefixtures('quick_compilation')


def student(get):
  return get('student_logits')


@pytest.mark.parametrize('name', ['kd__rep_T4', 'kd__rep_T1_large_f32'])
def test_published(name):
  published.check(
    name,
    student,
    lambda s, case: kd.kd_loss(
      s, case['teacher_logits'], float(case['hp_temperature'])
    ),
  )


def test_the_cross_entropy_form():
  """cls_KD keeps the teacher's entropy and has a weight of its own."""

  def loss(s, case):
    t = float(case['hp_temperature'])
    q = jax.nn.softmax(case['teacher_logits'] / t)
    entropy = -(t**2) * jnp.mean(jnp.sum(q * jnp.log(q), -1))
    value = kd.kd_loss(s, case['teacher_logits'], t) + entropy
    return float(case['hp_alpha']) * value

  published.check('kd__clskd_cross_entropy_form', student, loss)


def test_standardized_published():
  published.check(
    'logitstd_kd__C100_f32',
    student,
    lambda s, case: kd.kd_loss(
      kd.standardize(s),
      kd.standardize(jnp.asarray(case['teacher_logits'])),
      float(case['hp_temperature']),
    ),
  )


def test_of_the_teacher_with_itself_is_zero():
  logits = jnp.asarray([[1.0, -2.0, 30.0], [0.5, 0.5, 0.0]])
  value, grad = jax.value_and_grad(kd.kd_loss)(logits, logits, 4.0)
  assert value == 0
  np.testing.assert_allclose(grad, np.zeros((2, 3)), atol=1e-6)


def test_by_hand():
  # T = 2: teacher (3/4, 1/4), student (1/2, 1/2).
  teacher, student = [[2 * math.log(3), 0.0]], [[1.0, 1.0]]
  kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
  value = kd.kd_loss(jnp.asarray(student), jnp.asarray(teacher), 2.0)
  assert value == pytest.approx(4 * kl, rel=1e-5)


def test_standardizing_equal_logits_is_finite():
  logits = jnp.ones((2, 5))
  value, grad = jax.value_and_grad(lambda z: jnp.sum(kd.standardize(z) ** 2))(
    logits
  )
  assert value == 0
  assert np.isfinite(grad).all()
