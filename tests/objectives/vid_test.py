"""VID against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import vid
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(*features):
  return View(None, features, features, None)


def regressor(get, prefix):
  return {
    f'conv{i + 1}': {'kernel': published.conv(get(f'{prefix}.{2 * i}.weight'))}
    for i in range(3)
  }


def build(get):
  return {
    'student': published.feature(get('student_feat_0')),
    'regressor': regressor(get, 'regressor'),
    'log_scale': get('log_scale'),
  }


def by_method(tree, case, student, layers):
  """The loss of features `layers`, as those of the blocks from 0."""
  method = vid.VariationalInformationDistillation(
    variance=float(case['hp_init_pred_var']),
    epsilon=float(case['hp_eps']),
    setting=Setting(blocks=len(layers), trained=tuple(range(len(layers)))),
  )
  teacher = [
    jnp.asarray(published.feature(case[f'teacher_feat_{i}'])) for i in layers
  ]
  params = {f'cut_{i}': x for i, x in enumerate(tree)}
  value, extra, state = method.loss(
    {'params': params, 'state': {}}, view(*student), view(*teacher)
  )
  assert extra == state == {}
  return value


def test_published():
  """The teacher's map is larger; the inner width is the teacher's."""

  def loss(tree, case):
    student = [tree.pop('student')]
    return by_method([tree], case, student, [0])

  published.check('vid__rep_teacher_larger_f32', build, loss)


def test_another_inner_width_published():
  def loss(tree, case):
    student, teacher = match_sizes(
      tree['student'], jnp.asarray(published.feature(case['teacher_feat_0']))
    )
    module = vid.Regressor(teacher.shape[-1], int(case['hp_num_mid_channel']))
    predicted = module.apply({'params': tree['regressor']}, student)
    return vid.vid_loss(
      predicted, teacher, tree['log_scale'], float(case['hp_eps'])
    )

  published.check('vid__rep_student_larger', build, loss)


def test_two_layers_published():
  """mdistiller leaves feature 0, which is no block's end, out."""

  def build_both(get):
    return {
      'student': [published.feature(get(f'student_feat_{i}')) for i in (1, 2)],
      'params': [
        {
          'regressor': regressor(get, f'regressors.{i}'),
          'log_scale': get(f'log_scales.{i}'),
        }
        for i in range(2)
      ],
    }

  published.check(
    'vid__md_two_layers',
    build_both,
    lambda tree, case: by_method(tree['params'], case, tree['student'], [1, 2]),
  )


def test_by_hand():
  # Softplus(0) = log 2; errors 1 and 2 in a channel of that variance.
  predicted = np.float32([1.0, 2.0]).reshape(1, 1, 2, 1)
  zeros = np.zeros((1,), np.float32)
  value = jax.jit(vid.vid_loss)(predicted, 0 * predicted, zeros, 0.5)
  variance = math.log(2) + 0.5
  expected = 0.5 * (2.5 / variance + math.log(variance))
  assert value == pytest.approx(expected, rel=1e-6)


def test_of_the_teacher_itself_only_the_variance_is_left():
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 2)).astype(np.float32)
  scale = np.full((2,), vid.initial_log_scale(5.0, 1e-5), np.float32)
  value, grad = jax.jit(jax.value_and_grad(vid.vid_loss))(x, x, scale, 1e-5)
  assert value == pytest.approx(0.5 * math.log(5), rel=1e-5)
  assert not grad.any()


def test_extreme_log_scales_are_finite():
  x = np.ones((1, 1, 1, 2), np.float32)
  scale = np.float32([-1e4, 1e4])
  value, grads = jax.jit(jax.value_and_grad(vid.vid_loss, (0, 2)))(
    x, 0 * x, scale, 1e-5
  )
  assert np.isfinite(value)
  assert all(np.isfinite(g).all() for g in grads)


def test_init():
  """The student's map is larger."""

  def shapes(*sizes):
    return view(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes))

  method = vid.VariationalInformationDistillation(
    at=1, variance=2.0, setting=Setting(blocks=2, trained=(0, 1))
  )
  views = (
    shapes((2, 8, 8, 3), (2, 4, 4, 3)),
    shapes((2, 8, 8, 6), (2, 2, 2, 5)),
  )
  variables = jax.eval_shape(method.init, jax.random.key(0), *views)
  assert jax.tree.map(lambda x: x.shape, variables) == {
    'params': {
      'cut_1': {
        'log_scale': (5,),
        'regressor': {
          'conv1': {'kernel': (1, 1, 3, 5)},
          'conv2': {'kernel': (1, 1, 5, 5)},
          'conv3': {'kernel': (1, 1, 5, 5)},
        },
      }
    }
  }
  value, _, _ = jax.eval_shape(method.loss, variables, *views)
  assert value.shape == ()
  scale = vid.initial_log_scale(2.0, 1e-5)
  assert math.log1p(math.exp(scale)) + 1e-5 == pytest.approx(2.0, rel=1e-9)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'epsilon': 0.0}, 'vid.epsilon = 0.0: must be above 0'),
    (
      {'variance': 1e-5},
      'vid.variance = 1e-05: must be above epsilon = 1e-05 and below 100',
    ),
  ],
)
def test_misuse(options, message):
  with pytest.raises(UserError) as error:
    vid.VariationalInformationDistillation(**options)
  assert str(error.value) == message
