"""IRG against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import irg
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_published():
  def view(get, side):
    pooled, *maps = (
      published.feature(get(f'{side}_feat_{i}')) for i in range(3)
    )
    return View(None, tuple(maps), None, pooled)

  def loss(student, case):
    method = irg.InstanceRelationshipGraph(
      graph=float(case['hp_w_graph']),
      transform=float(case['hp_w_transform']),
      setting=Setting(blocks=2, trained=(0, 1)),
    )
    teacher = jax.tree.map(jnp.asarray, view(case.__getitem__, 'teacher'))
    return method.loss({}, student, teacher)

  published.check('irg__sem_a', lambda get: view(get, 'student'), loss)


def test_by_hand():
  # Squared distances 1, 4, 1 over 4 for the student, all 1 for the teacher.
  student = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
  teacher = jnp.asarray([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
  edge_term = 4 * 0.75**2 / 9
  # The vertices' only where shapes agree.
  value = irg.graph_loss(jnp.pad(student, ((0, 0), (0, 1))), teacher)
  assert value == pytest.approx(edge_term, rel=1e-5)
  value = irg.graph_loss(student, teacher)
  assert value == pytest.approx(edge_term + (1.5**2 + 0.75) / 6, rel=1e-5)
  # The student goes from its graph to the teacher's, the teacher stays.
  value = irg.transform_loss((student, teacher), (teacher[:, :1],) * 2)
  vertex_term = (1.5**2 + 0.75) / 6
  assert value == pytest.approx(edge_term**2 + vertex_term**2, rel=1e-5)


def test_transformations_follow_the_trained_blocks():
  def blocks(**options):
    return irg.InstanceRelationshipGraph(**options).places

  everything = Setting(blocks=4, trained=(0, 1, 2, 3))
  assert blocks(setting=everything) == (0, 1, 2, 3)
  assert blocks(at=(3, 1), setting=everything) == (1, 3)
  # Constant up to block 1, where the first of them starts.
  assert blocks(setting=Setting(blocks=4, trained=(2,))) == (1, 2, 3)


def test_of_the_teacher_with_itself_is_zero_and_equal_examples_are_finite():
  random = np.random.default_rng(0)
  method = irg.InstanceRelationshipGraph(
    setting=Setting(blocks=2, trained=(0, 1))
  )

  @jax.jit
  @jax.value_and_grad
  def value_and_grad(student, teacher):
    return method.loss({}, student, teacher)[0]

  maps = random.normal(size=(2, 4, 2, 2, 3)).astype(np.float32)
  view = View(None, tuple(maps), None, maps[0, :, 0, 0])
  value, grad = value_and_grad(view, view)
  assert abs(value) < 1e-10
  for x in jax.tree.leaves(grad):
    np.testing.assert_allclose(x, 0 * x, atol=1e-6)
  value, grad = value_and_grad(jax.tree.map(jnp.ones_like, view), view)
  assert value > 0
  for x in jax.tree.leaves((value, grad)):
    assert np.isfinite(x).all()


def test_a_transformation_needs_two_blocks():
  setting = Setting(blocks=3, trained=(1,), name='stage_1')
  method = irg.InstanceRelationshipGraph(at='trained', setting=setting)
  with pytest.raises(UserError, match=r"irg\.at = 'trained'.* in stage_1 "):
    method.init(jax.random.key(0), None, None)
  method = irg.InstanceRelationshipGraph(
    at='trained', transform=0.0, setting=setting
  )
  assert method.init(jax.random.key(0), None, None) == {}


def test_bad_weight():
  with pytest.raises(UserError, match=r'irg\.transform = -1\.0: must be at le'):
    irg.InstanceRelationshipGraph(transform=-1.0)
