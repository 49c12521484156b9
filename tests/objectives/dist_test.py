"""DIST against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import dist
from cbkd_jax.objectives.dist import StrongTeacherDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')


RUN = jax.jit(jax.value_and_grad(dist.dist_loss))


def rows(x):
  """Every pixel of `[N, C, H, W]` a row, in the order [N, W, H]."""
  return x.transpose(0, 3, 2, 1).reshape(-1, x.shape[1]) if x.ndim == 4 else x


@pytest.mark.parametrize(
  'name', ['dist__seg_2d', 'dist__seg_4d', 'dist__cls_tau2']
)
def test_published(name):
  def loss(s, case):
    method = StrongTeacherDistillation(
      beta=float(case['hp_beta']),
      gamma=float(case['hp_gamma']),
      temperature=float(case.get('hp_tau', 1.0)),
    )
    views = (
      View(jnp.asarray(x), (), (), jnp.zeros(()))
      for x in (s, rows(case['teacher_logits']))
    )
    return method.loss({}, *views)

  published.check(name, lambda get: rows(get('student_logits')), loss)


def test_by_hand():
  one = jnp.asarray([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
  two = jnp.asarray([[2.0, 4.0, 6.0], [1.0, 1.0, 0.0]])
  # Second row: centred (-1, 2, -1)/3 and (1, 1, -2)/3, so 3 / 6.
  np.testing.assert_allclose(dist.pearson(one, two, 1), [1, 0.5], rtol=1e-5)
  np.testing.assert_allclose(dist.pearson(one, two, 0), [1, 1, 1], rtol=1e-5)
  # Rows (p, 1 - p): with two classes and two examples every correlation is
  # 1 or -1.
  s = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
  t = jnp.asarray([[1.0, 0.0], [3.0, 0.0]])
  value, _ = RUN(s, t, 3.0, 5.0, 2.0)
  # Rows: 1 and -1, mean 0. Columns: both -1.
  assert value == pytest.approx(4 * (3 * 1 + 5 * 2), rel=1e-4)


def test_of_the_teacher_with_itself_is_zero():
  x = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, 0.0], [2.0, 1.0, 1.0]])
  value, grad = RUN(x, x, 1.0, 1.0, 2.0)
  assert value == pytest.approx(0, abs=1e-5)
  np.testing.assert_allclose(grad, np.zeros((3, 3)), atol=1e-5)


@pytest.mark.parametrize(
  's',
  [
    np.zeros((3, 3)),  # constant rows and columns
    [[1e4, 0.0, -1e4], [1e4, 0.0, -1e4], [1e4, 0.0, -1e4]],  # constant columns
    # Squares of the last column's deviations underflow to subnormal numbers.
    [[46.0, 0.0, 0.0], [46.0, 0.0, 0.5], [46.0, 0.0, 1.0]],
  ],
)
def test_finite_at_extremes(s):
  s = jnp.asarray(s, jnp.float32)
  t = jnp.asarray([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0], [-1e4, 1e4, 0.0]])
  value, grad = RUN(s, t, 1.0, 1.0)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'gamma': -1.0}, r'^dist\.gamma = -1\.0: must be at least 0$'),
    ({'temperature': -4.0}, r'^dist\.temperature = -4\.0: must be above 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    StrongTeacherDistillation(**options)
