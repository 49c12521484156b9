"""Learned maps from the student's features to the teacher's."""

import dataclasses
from typing import ClassVar

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.errors import UserError
from cbkd_jax.objectives import regressors
from cbkd_jax.objectives.regressors import ConvRegressor

pytestmark = pytest.mark.usefixtures('quick_compilation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain(regressors.Connected):
  name: ClassVar[str] = 'plain'


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def shape(*sizes):
  return jax.ShapeDtypeStruct(sizes, jnp.float32)


@pytest.mark.parametrize(
  ('name', 'train'),
  [
    ('same_size_1x1_train', True),
    ('student_2x_larger_train', True),
    ('student_2x_smaller_deconv_train', True),
    ('student_larger_by_2_valid_conv_eval', False),
  ],
)
def test_regressed_maps_published(name, train):
  case = golden.load(f'losses/fitnet__rep_{name}')
  width, side = case['teacher_feat_0'].shape[1:3]
  with jax.enable_x64():
    params = {
      'conv': {
        'kernel': published.conv(case['conv.weight']),
        'bias': case['conv.bias'],
      },
      'norm': published.batch_norm(lambda n: case[n], 'bn'),
    }
    stats = {'norm': published.statistics(lambda n: case[n], 'bn')}

    @jax.jit
    def apply(params, stats, x):
      return [
        regressors.apply_module(
          ConvRegressor(width, side, use_relu), params, stats, x, train=train
        )
        for use_relu in (True, False)
      ]

    (found, after), (plain, _) = jax.device_get(
      apply(params, stats, published.feature(case['student_feat_0']))
    )
  expected = published.feature(case['aux_regressed_student'])
  np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
  assert (plain < 0).any()
  np.testing.assert_allclose(np.maximum(plain, 0), found, rtol=1e-12)
  name = 'after_bn.running_mean' if train else 'bn.running_mean'
  np.testing.assert_allclose(after['norm']['mean'], case[name], rtol=1e-9)


@pytest.mark.parametrize(
  ('student', 'teacher', 'kernel'),
  [(4, 4, 1), (8, 4, 3), (4, 8, 4), (7, 5, 3), (1, 1, 1), (2, 1, 3)],
)
def test_what_leads_from_side_to_side(student, teacher, kernel):
  regressors.check_conv_regressor(
    'm', 0, shape(1, student, student, 3), shape(1, teacher, teacher, 5)
  )
  module = ConvRegressor(5, teacher)
  x = shape(2, student, student, 3)
  params, stats = jax.eval_shape(
    lambda key: regressors.init_module(module, key, x, train=False),
    jax.random.key(0),
  )
  assert params['conv']['kernel'].shape[:2] == (kernel, kernel)
  out, _ = jax.eval_shape(
    lambda p, s, x: regressors.apply_module(module, p, s, x, train=True),
    params,
    stats,
    x,
  )
  assert out.shape == (2, teacher, teacher, 5)


def test_no_regressor_leads_to_another_larger_side():
  with pytest.raises(UserError) as error:
    regressors.check_conv_regressor(
      'fitnet', 2, shape(1, 4, 4, 3), shape(1, 7, 7, 3)
    )
  assert str(error.value) == (
    "fitnet: after block 2 the student's map has side 4, the teacher's 7; it "
    'must be at least as large or exactly half'
  )


def test_statistics_are_those_of_all_replicas():
  x = random(4, 2, 2, 3)
  one, four = (ConvRegressor(3, 2, axis_name=a) for a in (None, 'replicas'))
  params, stats = jax.jit(
    lambda key: regressors.init_module(one, key, x, train=False)
  )(jax.random.key(0))

  def apply(module, x):
    return regressors.apply_module(module, params, stats, x, train=True)

  expected, after = jax.jit(lambda x: apply(one, x))(x)
  found, shared = jax.jit(
    jax.vmap(lambda x: apply(four, x), axis_name='replicas')
  )(x.reshape(2, 2, 2, 2, 3))
  np.testing.assert_allclose(
    found.reshape(x.shape), expected, rtol=1e-4, atol=1e-5
  )
  for name in ('mean', 'var'):
    both = shared['norm'][name]
    np.testing.assert_array_equal(both[0], both[1])
    np.testing.assert_allclose(both[0], after['norm'][name], rtol=1e-5)


def test_a_plain_module_has_no_statistics():
  module = regressors.conv(4, 3)
  params, stats = regressors.init_module(
    module, jax.random.key(0), shape(2, 5, 5, 3)
  )
  assert stats == {}
  assert params['kernel'].shape == (3, 3, 3, 4)
  assert params.keys() == {'kernel'}
  # It is padded, an even side by as much as an odd one.
  for side, expected in ((5, 5), (6, 6)):
    out = jax.eval_shape(
      lambda x: module.apply({'params': params}, x), shape(2, side, side, 3)
    )
    assert out.shape == (2, expected, expected, 4)


def test_connectors_where_widths_differ():
  method = Plain()
  student = [random(2, 4, 4, 3), random(2, 2, 2, 3)]
  teacher = [shape(2, 4, 4, 3), shape(2, 2, 2, 5)]
  params = method.init_connectors(
    jax.random.key(0), (1, 3), [shape(*x.shape) for x in student], teacher
  )
  assert jax.tree.map(jnp.shape, params) == {
    'cut_3': {'kernel': (1, 1, 3, 5), 'bias': (5,)}
  }
  params['cut_3']['bias'] += 1.0
  one, two = method.connect(params, (1, 3), student)
  assert one is student[0]
  kernel = params['cut_3']['kernel'][0, 0]
  expected = np.asarray(student[1]) @ np.asarray(kernel) + 1
  np.testing.assert_allclose(two, expected, rtol=1e-4, atol=1e-5)


def test_same_shapes():
  tree = {'a': random(2, 3), 'b': {}}
  assert regressors.same_shapes(tree, {'a': shape(2, 3), 'b': {}})
  for other in {'a': shape(3, 2), 'b': {}}, {'a': shape(2, 3)}, {}:
    assert not regressors.same_shapes(tree, other)


def test_no_connectors_wanted():
  method = Plain(regressor='none')
  maps = [shape(1, 2, 2, 3)]
  assert method.init_connectors(jax.random.key(0), (0,), maps, maps) == {}
  with pytest.raises(UserError) as error:
    method.init_connectors(jax.random.key(0), (0,), maps, [shape(1, 2, 2, 4)])
  assert str(error.value) == (
    "plain.regressor = 'none': after block 0 the student has 3 channels and "
    "the teacher 4; 'auto' learns a 1x1 convolution between them"
  )


def test_misuse():
  with pytest.raises(UserError) as error:
    Plain(regressor='conv')
  assert str(error.value) == (
    "plain.regressor = 'conv': must be one of 'auto', 'none'"
  )
