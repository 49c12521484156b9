"""PKT against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import pkt

pytestmark = pytest.mark.usefixtures('quick_compilation')

value_and_grad = jax.jit(jax.value_and_grad(pkt.pkt_loss))


@pytest.mark.parametrize('name', ['pkt__rep_teacher_zero_row', 'pkt__md_f32'])
def test_published(name):
  method = pkt.ProbabilisticKnowledgeTransfer()

  def loss(student, case):
    teacher = jnp.asarray(case['teacher_feat_0'])
    return method.loss(
      {}, View(None, None, None, student), View(None, None, None, teacher)
    )

  published.check(name, lambda get: get('student_feat_0'), loss)


def test_by_hand():
  # Cosine 0 for the student, rows (2/3, 1/3); -1 for the teacher, (1, 0).
  student = jnp.asarray([[5.0, 0.0], [0.0, 0.1]])
  teacher = jnp.asarray([[1.0], [-2.0]])
  value = jax.jit(pkt.pkt_loss)(student, teacher)
  assert value == pytest.approx(2 * math.log(1.5) / 4, rel=1e-4)


def test_of_the_teacher_with_itself_is_zero():
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  value, grad = value_and_grad(x, x)
  assert abs(value) < 1e-7
  np.testing.assert_allclose(grad, 0 * x, atol=1e-7)


@pytest.mark.parametrize('zeros', [1, 4])
def test_rows_of_zeros(zeros):
  """Of the student: one, whose gradient is 0 and the others' is not; all."""
  random = np.random.default_rng(0)
  student, teacher = random.normal(size=(2, 4, 3)).astype(np.float32)
  student[:zeros] = 0
  value, grad = value_and_grad(student, teacher)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  np.testing.assert_array_equal(grad[:zeros], student[:zeros])
  assert np.all(grad[zeros:] != 0)


def test_bad_place():
  with pytest.raises(UserError, match=r'pkt\.at = -1: must be .* from 0'):
    pkt.ProbabilisticKnowledgeTransfer(at=-1)
