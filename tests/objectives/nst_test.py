"""NST against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import nst
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

value_and_grad = jax.jit(jax.value_and_grad(nst.nst_loss))


@pytest.mark.parametrize(
  'name', ['nst__rep_channels_and_sizes_differ', 'nst__md_f32']
)
def test_published(name):
  method = nst.NeuronSelectivityTransfer(
    setting=Setting(blocks=2, trained=(0, 1))
  )

  def view(get, side):
    maps = (published.feature(get(f'{side}_feat_{i}')) for i in range(2))
    return View(None, tuple(maps), None, None)

  def loss(student, case):
    teacher = jax.tree.map(jnp.asarray, view(case.__getitem__, 'teacher'))
    return method.loss({}, student, teacher)

  published.check(name, lambda get: view(get, 'student'), loss)


def test_by_hand():
  # Over two positions: channels (0.6, 0.8); for the teacher (1, 0), (0, 1).
  student = jnp.asarray([3.0, 4.0]).reshape(1, 1, 2, 1)
  teacher = jnp.asarray([[2.0, 0.0], [0.0, 5.0]]).reshape(1, 1, 2, 2)
  value = jax.jit(nst.nst_loss)([student], [teacher])
  assert value == pytest.approx(0.5 + 1 - 2 * (0.36 + 0.64) / 2, rel=1e-5)


def test_of_the_teacher_with_itself_is_zero_and_zero_channels_are_finite():
  x = np.random.default_rng(0).normal(size=(2, 2, 2, 3)).astype(np.float32)
  value, grad = value_and_grad([x], [x])
  assert abs(value) < 1e-6
  np.testing.assert_allclose(grad[0], 0 * x, atol=1e-6)
  dead = x.copy()
  dead[0, ..., 1] = 0
  value, grad = value_and_grad([dead], [x])
  assert value > 0
  assert np.isfinite(grad[0]).all()
  np.testing.assert_array_equal(grad[0][0, ..., 1], 0 * dead[0, ..., 1])
  assert np.abs(grad[0]).max() < 10


def test_bad_place():
  with pytest.raises(UserError, match=r"nst\.at = 'pooled': must be 'cuts'"):
    nst.NeuronSelectivityTransfer(at='pooled')
