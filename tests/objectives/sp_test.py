"""SP against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import sp
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

value_and_grad = jax.jit(jax.value_and_grad(sp.sp_loss))


@pytest.mark.parametrize(
  ('name', 'at', 'layers'),
  [('sp__rep_two_layers', 'cuts', 2), ('sp__md_vectors_f32', 'pooled', 1)],
)
def test_published(name, at, layers):
  method = sp.SimilarityPreserving(
    at=at, setting=Setting(blocks=layers, trained=tuple(range(layers)))
  )

  def view(get, side):
    maps = [published.feature(get(f'{side}_feat_{i}')) for i in range(layers)]
    return View(None, tuple(maps), None, maps[-1])

  def loss(student, case):
    teacher = jax.tree.map(jnp.asarray, view(case.__getitem__, 'teacher'))
    return method.loss({}, student, teacher)

  # Of the arrays in a view, only those that the method looks at have a
  # gradient that is not zero, in the case too.
  def build(get):
    found = view(get, 'student')
    unused = 'features' if at == 'pooled' else 'pooled'
    return found._replace(**{unused: None})

  published.check(name, build, loss)


def test_by_hand():
  # Products [[1, 0], [0, 4]] and [[1, 1], [1, 1]], rows at norm 1.
  student = jnp.asarray([[1.0, 0.0], [0.0, 2.0]])
  teacher = jnp.asarray([[1.0], [1.0]])
  root = 0.5**0.5
  value = jax.jit(sp.sp_loss)([student], [teacher])
  assert value == pytest.approx(
    (2 * (1 - root) ** 2 + 2 * root**2) / 4, rel=1e-5
  )


def test_of_the_teacher_with_itself_is_zero():
  x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
  value, grad = value_and_grad([x], [x])
  assert abs(value) < 1e-10
  np.testing.assert_allclose(grad[0], 0 * x, atol=1e-6)


def test_a_row_of_zeros():
  random = np.random.default_rng(0)
  student, teacher = random.normal(size=(2, 4, 3)).astype(np.float32)
  student[1] = 0
  value, grad = value_and_grad([student], [teacher])
  assert np.isfinite(value)
  assert np.isfinite(grad[0]).all()
  assert np.abs(grad[0]).max() < 10


def test_bad_place():
  with pytest.raises(UserError, match=r"sp\.at = 'first': must be 'cuts'"):
    sp.SimilarityPreserving(at='first')
