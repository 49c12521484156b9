"""AB against published and hand-made numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ab
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(*pre_activations):
  # Features are not what it looks at.
  return View(None, (None,) * len(pre_activations), pre_activations, None)


def shapes(*sizes):
  return view(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes))


def bound(method, blocks, preparing):
  setting = Setting(
    blocks=blocks, trained=tuple(range(blocks)), preparing=preparing
  )
  return dataclasses.replace(method, setting=setting)


@pytest.mark.parametrize(
  ('name', 'layers'),
  [('ab__rep_three_layers', 3), ('ab__rep_margin2_f32', 2)],
)
def test_published(name, layers):
  """Shapes are equal: there is nothing to connect."""

  def build(get):
    return [published.feature(get(f'student_feat_{i}')) for i in range(layers)]

  def loss(student, case):
    assert layers == case['hp_feat_num']
    teacher = build(lambda n: case[n.replace('student', 'teacher')])
    method = ab.ActivationBoundaries(margin=float(case['hp_margin']))
    method = bound(method, layers, preparing=True)
    variables = method.init(jax.random.key(0), view(*student), view(*teacher))
    value, _, state = method.loss(variables, view(*student), view(*teacher))
    assert variables == {'params': {}, 'state': {}}
    assert state == {}
    return value

  published.check(name, build, loss)


def test_by_hand():
  # Wrong side, right side within the margin, beyond it; teacher off, then on.
  student = np.float32([1.0, -0.5, -2.0, -1.0, 0.5, 2.0])
  teacher = np.float32([0.0, -1.0, -1.0, 1.0, 0.1, 3.0])
  cost = 2**2 + 0.5**2 + 0 + 2**2 + 0.5**2 + 0
  one, two = (x.reshape(2, 1, 3, 1) for x in (student, teacher))
  value, grads = jax.jit(jax.value_and_grad(ab.ab_loss))([one, one], [two, two])
  # Two examples; layers of weight 1/2 and 1.
  assert value == pytest.approx(1.5 * cost / 2 * 3 / 1000, rel=1e-6)
  slopes = 2 * np.asarray([2, 0.5, 0, -2, -0.5, 0]) / 2 * 3 / 1000
  np.testing.assert_allclose(grads[0].ravel(), slopes / 2, rtol=1e-6)
  np.testing.assert_allclose(grads[1].ravel(), slopes, rtol=1e-6)


def test_beyond_the_margin_on_the_teachers_side_is_zero():
  teacher = np.float32([3.0, -3.0, 1e9, -1e9]).reshape(1, 2, 2, 1)
  value, grad = jax.jit(
    jax.value_and_grad(lambda s: ab.ab_loss([s], [teacher], margin=2.0))
  )(teacher)
  assert value == 0
  assert not grad.any()


def test_afterwards_nothing_is_left():
  method = ab.ActivationBoundaries()
  assert method.has_pre_stage
  assert method.prepares == 'blocks'
  # Not even maps that could not be connected matter.
  student, teacher = view(jnp.ones((1, 2, 2, 1))), view(jnp.ones((1, 9, 9, 1)))
  variables = method.init(jax.random.key(0), student, teacher)
  value, extra, state = method.loss(
    {'params': {}, 'state': {}}, student, teacher
  )
  assert variables == {'params': {}, 'state': {}}
  assert value == 0
  assert value.dtype == jnp.float32
  assert extra == {}
  assert state == {}


def test_an_ordinary_term_without_pre_stage():
  method = bound(ab.ActivationBoundaries(pre_fraction=0.0), 2, preparing=False)
  assert not method.has_pre_stage
  rng = np.random.default_rng(0)

  def maps(*sizes):
    return view(*(rng.normal(size=s).astype(np.float32) for s in sizes))

  student = maps((4, 4, 4, 2), (4, 2, 2, 3))
  teacher = maps((4, 4, 4, 2), (4, 2, 2, 5))
  variables = jax.jit(method.init)(jax.random.key(0), student, teacher)
  # A connector where widths differ, and no ReLU at its end.
  assert jax.tree.map(jnp.shape, variables['params']) == {
    'cut_1': {
      'conv': {'kernel': (1, 1, 3, 5), 'bias': (5,)},
      'norm': {'scale': (5,), 'bias': (5,)},
    }
  }
  (value, state), grads = jax.jit(
    jax.value_and_grad(
      lambda p: method.loss({**variables, 'params': p}, student, teacher)[::2],
      has_aux=True,
    )
  )(variables['params'])
  assert jax.tree.structure(state) == jax.tree.structure(variables['state'])
  assert not np.array_equal(state['cut_1']['norm']['mean'], np.zeros(5))
  assert np.abs(grads['cut_1']['conv']['kernel']).max() > 0
  kernel = np.asarray(variables['params']['cut_1']['conv']['kernel'])[0, 0]
  connected = student.pre_activations[1] @ kernel
  connected -= connected.mean((0, 1, 2))
  connected /= np.sqrt(connected.var((0, 1, 2)) + 1e-5)
  margins = [
    np.maximum(0, 1 - np.where(t > 0, s, -s)) ** 2
    for s, t in zip(
      (student.pre_activations[0], connected), teacher.pre_activations
    )
  ]
  expected = (margins[0].sum() / 2 + margins[1].sum()) / 4 * 3 / 1000
  assert value == pytest.approx(expected, rel=1e-5)


def test_statistics_are_those_of_all_replicas():
  method = ab.ActivationBoundaries(
    pre_fraction=0.0, setting=Setting(axis_name='replicas')
  )
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 2)).astype(np.float32)
  teacher = view(np.ones((3, 2, 2, 4), np.float32))
  variables = jax.jit(
    lambda: method.init(jax.random.key(0), view(x[0]), teacher)
  )()

  def state(x):
    return method.loss(variables, view(x), teacher)[2]

  found = jax.jit(jax.vmap(state, axis_name='replicas'))(x)
  assert len(jax.tree.leaves(found)) == 2
  for both in jax.tree.leaves(found):
    np.testing.assert_array_equal(both[0], both[1])


def test_shapes_that_cant_be_connected():
  method = bound(ab.ActivationBoundaries(), 1, preparing=True)
  with pytest.raises(UserError, match=r'^ab: after block 0 .* side 3'):
    method.init(jax.random.key(0), shapes((1, 3, 3, 2)), shapes((1, 8, 8, 2)))


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'margin': 0.0}, 'ab.margin = 0.0: must be above 0'),
    (
      {'pre_fraction': 1.0},
      'ab.pre_fraction = 1.0: must be from 0 to below 1',
    ),
  ],
)
def test_misuse(options, message):
  with pytest.raises(UserError) as error:
    ab.ActivationBoundaries(**options)
  assert str(error.value) == message
