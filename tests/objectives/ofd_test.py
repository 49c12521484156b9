"""OFD against published and hand-made numbers."""

import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ofd
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

CASE = 'ofd__md_full_k1'
PREFIX = 'connectors.connectors.'

loss_and_grad = jax.jit(jax.value_and_grad(ofd.ofd_loss))


def view(*pre_activations):
  # Features are not what it looks at.
  return View(None, (None,) * len(pre_activations), pre_activations, None)


def norms(case):
  return tuple(
    tuple(jnp.asarray(case[f'teacher_bn_{n}_{i}']) for n in ('weight', 'bias'))
    for i in range(2)
  )


def build(get):
  return {
    'student': [published.feature(get(f'student_feat_{i}')) for i in range(2)],
    'params': {
      f'cut_{i}': {
        'conv': {'kernel': published.conv(get(f'{PREFIX}{i}.0.weight'))},
        'norm': published.batch_norm(get, f'{PREFIX}{i}.1'),
      }
      for i in range(2)
    },
  }


def full(tree, case):
  method = ofd.Overhaul(setting=Setting(blocks=2, trained=(0, 1)))
  teacher = [
    jnp.asarray(published.feature(case[f'teacher_feat_{i}'])) for i in range(2)
  ]
  state = {
    f'cut_{i}': {
      'norm': published.statistics(
        lambda n: jnp.asarray(case[n]), f'{PREFIX}{i}.1'
      )
    }
    for i in range(2)
  }
  value, extra, state = method.loss(
    {'params': tree['params'], 'state': state},
    view(*tree['student']),
    view(*teacher),
    teacher_norms=norms(case),
  )
  assert extra == {}
  return value, state


def test_published():
  (state,) = published.check(CASE, build, full)
  for i, count in enumerate((4 * 8 * 8, 4 * 4 * 4)):
    published.check_statistics(
      CASE, f'{PREFIX}{i}.1', state[f'cut_{i}']['norm'], count
    )


def test_partial_distance_published():
  published.check(
    'ofd__md_feat_loss_only',
    lambda get: published.feature(get('student_feat_0')),
    lambda student, case: ofd.ofd_loss(
      student,
      jnp.asarray(published.feature(case['teacher_feat_0'])),
      jnp.asarray(case['margin'].ravel()),
    ),
  )


def test_margins_published():
  case = golden.load(f'losses/{CASE}')
  with jax.enable_x64():
    margins = jax.jit(lambda: [ofd.margin(*pair) for pair in norms(case)])()
  for i, found in enumerate(margins):
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(
      found, case[f'aux_margin_{i}'].ravel(), rtol=1e-6
    )


def test_margins_by_hand():
  scale = jnp.asarray([2.0, -2.0, 1.0, 0.0, 0.0, 0.0, 1e-30])
  bias = jnp.asarray([0.0, 0.0, 4.0, -1.5, 1.5, 0.0, 1e30])
  half = -2 * 2 / math.sqrt(2 * math.pi)
  # Half a normal; hardly ever negative; constant channels.
  expected = [half, half, -3.0, -1.5, 0.0, 0.0, -3e-30]
  found = jax.jit(ofd.margin)(scale, bias)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  grads = jax.jit(jax.grad(lambda *x: jnp.sum(ofd.margin(*x)), (0, 1)))(
    scale, bias
  )
  assert not np.any(grads)


def test_by_hand():
  # Margin -1. Teacher below it, between it and 0, above 0; the student above
  # and below what it is drawn to.
  teacher = jnp.asarray([-3.0, -3.0, -0.5, -0.5, 2.0, 2.0])
  student = jnp.asarray([0.0, -2.0, 1.0, -0.7, 5.0, -4.0])
  expected = [1.0, 0.0, 1.5**2, 0.0, 3.0**2, 6.0**2]
  slopes = [2.0, 0.0, 3.0, 0.0, 6.0, -12.0]
  one, two = (x.reshape(2, 3, 1, 1) for x in (student, teacher))
  value, grad = loss_and_grad(one, two, -np.ones(1, np.float32))
  assert value == pytest.approx(sum(expected) / 2, rel=1e-6)
  np.testing.assert_allclose(2 * grad.ravel(), slopes, rtol=1e-6)


def test_the_teacher_itself_is_zero():
  x = jnp.asarray([-0.9, -0.1, 0.0, 4.0]).reshape(1, 2, 2, 1)
  value, grad = loss_and_grad(x, x, -np.ones(1, np.float32))
  assert value == 0
  assert not grad.any()


def test_init_and_a_step_at_a_later_place():
  """The norms are by block, whatever the places."""
  method = ofd.Overhaul(setting=Setting(blocks=3, trained=(1, 2)))
  rng = np.random.default_rng(0)

  def maps(*sizes):
    return view(*(rng.normal(size=s).astype(np.float32) for s in sizes))

  student = maps((4, 8, 8, 2), (4, 4, 4, 3), (4, 2, 2, 3))
  teacher = maps((4, 8, 8, 2), (4, 8, 8, 5), (4, 1, 1, 4))
  variables = jax.jit(method.init)(jax.random.key(0), student, teacher)
  assert jax.tree.map(jnp.shape, variables['params']) == {
    'cut_1': {
      'conv': {'kernel': (1, 1, 3, 5)},
      'norm': {'scale': (5,), 'bias': (5,)},
    },
    'cut_2': {
      'conv': {'kernel': (1, 1, 3, 4)},
      'norm': {'scale': (4,), 'bias': (4,)},
    },
  }
  pairs = tuple(
    (np.ones(c, np.float32), np.zeros(c, np.float32)) for c in (2, 5, 4)
  )
  value, _, state = jax.jit(method.loss)(
    variables, student, teacher, teacher_norms=pairs
  )
  assert np.isfinite(value)
  assert value > 0
  assert jax.tree.structure(state) == jax.tree.structure(variables['state'])


def test_statistics_are_those_of_all_replicas():
  method = ofd.Overhaul(setting=Setting(axis_name='replicas'))
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 2)).astype(np.float32)
  variables = jax.jit(
    lambda: method.init(jax.random.key(0), view(x[0]), view(x[0]))
  )()
  norms = ((np.ones(2, np.float32), np.zeros(2, np.float32)),)

  def state(x):
    return method.loss(variables, view(x), view(x), teacher_norms=norms)[2]

  found = jax.jit(jax.vmap(state, axis_name='replicas'))(x)
  for both in jax.tree.leaves(found):
    np.testing.assert_array_equal(both[0], both[1])


def test_misuse():
  with pytest.raises(UserError) as error:
    ofd.Overhaul(learning_rate=0.0)
  assert str(error.value) == 'ofd.learning_rate = 0.0: must be above 0'
