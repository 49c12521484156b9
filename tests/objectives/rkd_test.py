"""RKD against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import rkd

pytestmark = pytest.mark.usefixtures('quick_compilation')

value_and_grad = jax.jit(
  jax.value_and_grad(rkd.rkd_loss), static_argnums=(2, 3)
)


@pytest.mark.parametrize(
  'name',
  [
    'rkd__rep_both',
    'rkd__rep_angle_only',
    'rkd__rep_feature_maps',
    'rkd__md_squared_distance',
    'rkd__rep_duplicate_samples',
  ],
)
def test_published(name):
  def loss(student, case):
    method = rkd.RelationalKnowledgeDistillation(
      distance=float(case['hp_w_d']),
      angle=float(case['hp_w_a']),
      squared=bool(case.get('hp_squared', False)),
      at='pooled' if student.ndim == 2 else 'last',
    )
    teacher = jnp.asarray(published.feature(case['teacher_feat_0']))
    return method.loss(
      {},
      View(None, (student,), None, student),
      View(None, (teacher,), None, teacher),
    )

  published.check(
    name, lambda get: published.feature(get('student_feat_0')), loss
  )


def test_by_hand():
  # Distances 2 | 1, 1 of points 0, 2, 1 on a line, their mean 4/3; for the
  # teacher, of a triangle of equal sides, all are 1.
  student = jnp.asarray([[0.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
  teacher = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
  value, _ = value_and_grad(student, teacher, 1.0, 0.0)
  squares = 2 * (0.5**2 + 2 * 0.25**2)
  assert value == pytest.approx(squares / 2 / 9, rel=1e-5)
  # Angles 0, 0 and 180 degrees in place of 60: cosines 1, 1, -1 for 1/2.
  value, _ = value_and_grad(student, teacher, 0.0, 1.0)
  errors = 2 * (0.5**2 / 2 + 0.5**2 / 2 + (1.5 - 0.5))
  assert value == pytest.approx(errors / 27, rel=1e-5)


def test_of_the_teacher_with_itself_is_zero():
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  value, grad = value_and_grad(x, x, 25.0, 50.0)
  assert abs(value) < 1e-10
  np.testing.assert_allclose(grad, 0 * x, atol=1e-6)


@pytest.mark.parametrize('rows', [2, 4])
def test_coinciding_students(rows):
  """Two of four, or all."""
  random = np.random.default_rng(0)
  student, teacher = random.normal(size=(2, 4, 3)).astype(np.float32)
  student[:rows] = student[0]
  value, grad = value_and_grad(student, teacher, 25.0, 50.0)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  assert np.abs(grad).max() < 1e3


def test_a_single_example_has_no_relations():
  one = jnp.ones((1, 3))
  value, grad = value_and_grad(one, 2 * one, 25.0, 50.0)
  assert value == 0
  np.testing.assert_array_equal(grad, np.zeros((1, 3)))


def test_bad_weight():
  with pytest.raises(UserError, match=r'rkd\.angle = -1\.0: must be at least'):
    rkd.RelationalKnowledgeDistillation(angle=-1.0)
