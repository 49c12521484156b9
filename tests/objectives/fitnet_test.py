"""FitNet against published and hand-made numbers."""

import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import fitnet
from cbkd_jax.objectives.ce import cross_entropy
from cbkd_jax.objectives.method import Setting
from cbkd_jax.objectives.regressors import ConvRegressor, apply_module

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(*features, logits=None):
  return View(logits, features, features, None)


def layer(get, prefix=''):
  """A regressor's convolution; transposed kernels permute alike."""
  return {
    'kernel': published.conv(get(f'{prefix}conv.weight')),
    'bias': get(f'{prefix}conv.bias'),
  }


def build(get, prefix='', block=0):
  return {
    'student': published.feature(get(f'student_feat_{block}')),
    'params': {
      'conv': layer(get, prefix),
      'norm': published.batch_norm(get, f'{prefix}bn'),
    },
  }


def statistics(case, prefix=''):
  found = published.statistics(lambda n: case[n], f'{prefix}bn')
  return jax.tree.map(jnp.asarray, found)


def by_method(tree, case):
  """(loss, new state) of the method at its default place."""
  variables = {
    'params': {'cut_0': tree['params']},
    'state': {'cut_0': {'norm': statistics(case)}},
  }
  teacher = published.feature(case['teacher_feat_0'])
  method = fitnet.FitNet()
  value, extra, state = method.loss(
    variables, view(tree['student']), view(jnp.asarray(teacher))
  )
  assert extra == {}
  return value, state


@pytest.mark.parametrize(
  'name',
  [
    'fitnet__rep_same_size_1x1_train',
    'fitnet__rep_student_2x_larger_train',
    'fitnet__rep_student_2x_smaller_deconv_train',
  ],
)
def test_published(name):
  (state,) = published.check(name, build, by_method)
  batch, _, *size = golden.load(f'losses/{name}')['teacher_feat_0'].shape
  published.check_statistics(
    name, 'bn', state['cut_0']['norm'], batch * math.prod(size)
  )


@pytest.mark.parametrize(
  'name',
  [
    'fitnet__rep_same_size_1x1_eval',
    'fitnet__rep_student_larger_by_2_valid_conv_eval',
  ],
)
def test_published_by_running_statistics(name):
  def loss(tree, case):
    teacher = jnp.asarray(published.feature(case['teacher_feat_0']))
    regressed, _ = apply_module(
      ConvRegressor(teacher.shape[-1], teacher.shape[1]),
      tree['params'],
      {'norm': statistics(case)},
      tree['student'],
      train=False,
    )
    return fitnet.hint_loss(regressed, teacher)

  published.check(name, build, loss)


def test_the_recipe_published():
  """Feature 2 is the end of block 1: the middle of two blocks, and of three."""
  prefix = 'conv_reg.'

  def both(get):
    return {'logits': get('student_logits'), **build(get, prefix, 2)}

  def loss(tree, case):
    method = fitnet.FitNet(setting=Setting(blocks=3, trained=(0, 1, 2)))
    variables = {
      'params': {'cut_1': tree['params']},
      'state': {'cut_1': {'norm': statistics(case, prefix)}},
    }
    teacher = jnp.asarray(published.feature(case['teacher_feat_2']))
    value, _, _ = method.loss(
      variables,
      view(None, tree['student'], None, logits=tree['logits']),
      view(None, teacher, None),
    )
    weight = float(case['hp_feat_weight'])
    return cross_entropy(tree['logits'], case['labels']) + weight * value

  published.check('fitnet__md_forward_train', both, loss)


def test_by_hand():
  student = jnp.asarray([1.0, 2.0]).reshape(1, 1, 2, 1)
  teacher = jnp.asarray([0.0, 5.0]).reshape(1, 1, 2, 1)
  assert fitnet.hint_loss(student, teacher) == (1 + 9) / 2
  assert fitnet.hint_loss(student, student) == 0


def shapes(*sizes):
  return view(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes))


def test_init():
  method = fitnet.FitNet(
    at=(0, 1), setting=Setting(blocks=2, trained=(0, 1), axis_name='replicas')
  )
  variables = jax.eval_shape(
    method.init,
    jax.random.key(0),
    shapes((2, 8, 8, 3), (2, 4, 4, 5)),
    shapes((2, 8, 8, 4), (2, 8, 8, 6)),
  )
  found = jax.tree.map(lambda x: x.shape, variables)
  assert found['params'] == {
    'cut_0': {
      'conv': {'kernel': (1, 1, 3, 4), 'bias': (4,)},
      'norm': {'scale': (4,), 'bias': (4,)},
    },
    'cut_1': {
      'conv': {'kernel': (4, 4, 6, 5), 'bias': (6,)},
      'norm': {'scale': (6,), 'bias': (6,)},
    },
  }
  assert found['state'] == {
    'cut_0': {'norm': {'mean': (4,), 'var': (4,)}},
    'cut_1': {'norm': {'mean': (6,), 'var': (6,)}},
  }


def test_statistics_are_those_of_all_replicas():
  method = fitnet.FitNet(setting=Setting(axis_name='replicas'))
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 2)).astype(np.float32)
  variables = jax.jit(
    lambda: method.init(jax.random.key(0), view(x[0]), view(x[0]))
  )()

  def state(x):
    return method.loss(variables, view(x), view(x))[2]

  found = jax.jit(jax.vmap(state, axis_name='replicas'))(x)
  for both in jax.tree.leaves(found):
    np.testing.assert_array_equal(both[0], both[1])


def test_a_regressor_cant_enlarge_by_three():
  with pytest.raises(UserError, match=r'block 0 .*side 2, .*teacher.s 6'):
    fitnet.FitNet().init(
      jax.random.key(0), shapes((1, 2, 2, 3)), shapes((1, 6, 6, 3))
    )


def test_misuse():
  with pytest.raises(UserError) as error:
    fitnet.FitNet(at='pooled')
  assert str(error.value) == (
    "fitnet.at = 'pooled': must be 'cuts', 'trained', 'middle', 'last', or "
    'different block indices from 0'
  )
