"""FT against published and hand-made numbers."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest
from jax.flatten_util import ravel_pytree

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ft
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

PREPARING = Setting(preparing=True)
CASE = 'ft__rep_translator_paraphraser'


def view(*features):
  return View(None, features, features, None)


def coder(get, prefix, use_bn):
  """(params, batch_stats) of three torch layers; convolutions by name."""
  params, stats = {}, {}
  for i in range(3):
    conv, norm = f'{prefix}.{3 * i}', f'{prefix}.{3 * i + 1}'
    params[f'conv{i + 1}'] = {
      'kernel': published.conv(get(f'{conv}.weight')),
      'bias': get(f'{conv}.bias'),
    }
    if use_bn:
      params[f'norm{i + 1}'] = {
        'scale': get(f'{norm}.weight'),
        'bias': get(f'{norm}.bias'),
      }
      stats[f'norm{i + 1}'] = norm
  return params, stats


def running(names, case, prefix=''):
  """The batch statistics whose torch names `coder` gave."""
  return jax.tree.map(
    lambda n: {
      'mean': case[f'{prefix}{n}.running_mean'],
      'var': case[f'{prefix}{n}.running_var'],
    },
    names,
  )


def is_conv(tree):
  return 'kernel' in tree


def pack(params):
  """One array per convolution.

  A bias in front of batch normalisation has gradient 0 but for rounding: it is
  compared as a part of its layer.
  """
  return jax.tree.map(
    lambda layer: (
      np.concatenate([np.ravel(x) for x in jax.tree.leaves(layer)])
      if is_conv(layer)
      else layer
    ),
    params,
    is_leaf=is_conv,
  )


def unpack(packed, params):
  return jax.tree.map(
    lambda found, like: (
      ravel_pytree(jax.tree.map(jnp.asarray, like))[1](found)
      if is_conv(like)
      else found
    ),
    packed,
    params,
    is_leaf=lambda x: not isinstance(x, dict) or 'scale' in x,
  )


def autoencoder(get, prefix='', use_bn=False):
  parts = {
    n: coder(get, f'{prefix}{n}', use_bn) for n in ('encoder', 'decoder')
  }
  return tuple({n: pair[i] for n, pair in parts.items()} for i in range(2))


def reconstruction(packed, case):
  """(loss, new state) of the pre-stage."""
  use_bn = bool(case['hp_use_bn'])
  params, names = autoencoder(lambda n: case[n], use_bn=use_bn)
  method = ft.FactorTransfer(
    k=float(case['hp_k']), use_bn=use_bn, setting=PREPARING
  )
  stats = running(names, case) if use_bn else {}
  teacher = view(jnp.asarray(published.feature(case['teacher_feat_0'])))
  value, _, state = method.loss(
    {
      'params': {'cut_0': {'paraphraser': unpack(packed, params)}},
      'state': {'cut_0': {'paraphraser': jax.tree.map(jnp.asarray, stats)}},
    },
    teacher,
    teacher,
  )
  return value, state


def transfer(tree, case):
  """(loss, new state) of the student's stage."""

  def get(name):
    return case[name]

  params, names = coder(get, 'translator.encoder', True)
  stats = running(names, case)
  frozen = autoencoder(get, 'paraphraser.')[0]
  method = ft.FactorTransfer(
    p1=int(case['hp_p1']), p2=int(case['hp_p2']), k=float(case['hp_k'])
  )
  value, _, state = method.loss(
    {
      'params': {'cut_0': {'translator': unpack(tree['translator'], params)}},
      'state': jax.tree.map(
        jnp.asarray,
        {
          'cut_0': {
            'translator': stats,
            'paraphraser': {'params': frozen, 'batch_stats': {}},
          }
        },
      ),
    },
    view(tree['student']),
    view(jnp.asarray(published.feature(case['teacher_feat_0']))),
  )
  return value, state


def build_transfer(get):
  return {
    'student': published.feature(get('student_feat_0')),
    'translator': pack(coder(get, 'translator.encoder', True)[0]),
  }


def assert_statistics(found, names, case, n):
  """Torch keeps the unbiased variance of the batch, flax the biased one."""
  after, before = (running(names, case, p) for p in ('after_', ''))
  for name, expected in after.items():
    np.testing.assert_allclose(found[name]['mean'], expected['mean'], rtol=1e-9)
    old = 0.9 * before[name]['var']
    np.testing.assert_allclose(
      old + (found[name]['var'] - old) * n / (n - 1), expected['var'], rtol=1e-9
    )


@pytest.mark.parametrize('use_bn', [False, True])
def test_the_paraphraser_published(use_bn):
  published.check(
    'ft__rep_paraphraser_reconstruction' + '_bn' * use_bn,
    lambda get: pack(autoencoder(get, use_bn=use_bn)[0]),
    reconstruction,
  )


def test_the_translator_published():
  published.check(CASE, build_transfer, transfer)


def test_factors_published():
  published.check(
    'ft__rep_p2_2_sizes_differ',
    lambda get: published.feature(get('student_feat_0')),
    lambda student, case: ft.factor_loss(
      student,
      jnp.asarray(published.feature(case['teacher_feat_0'])),
      int(case['hp_p1']),
      int(case['hp_p2']),
    ),
  )


def test_state_published():
  case = golden.load('losses/ft__rep_paraphraser_reconstruction_bn')
  with jax.enable_x64():
    params, names = autoencoder(lambda n: case[n], use_bn=True)
    _, state = jax.device_get(
      jax.jit(lambda t: reconstruction(t, case))(pack(params))
    )
  for part in ('encoder', 'decoder'):
    found = state['cut_0']['paraphraser'][part]
    assert_statistics(found, names[part], case, 4 * 5 * 5)

  case = golden.load(f'losses/{CASE}')
  with jax.enable_x64():
    tree = jax.tree.map(jnp.asarray, build_transfer(lambda n: case[n]))
    _, state = jax.device_get(jax.jit(lambda t: transfer(t, case))(tree))
  names = coder(lambda n: case[n], 'translator.encoder', True)[1]
  assert_statistics(state['cut_0']['translator'], names, case, 4 * 6 * 6)
  # What is frozen comes out as it went in.
  frozen = autoencoder(lambda n: case[n], 'paraphraser.')[0]
  jax.tree.map(
    np.testing.assert_array_equal,
    state['cut_0']['paraphraser'],
    {'params': frozen, 'batch_stats': {}},
  )


loss_and_grad = jax.jit(
  jax.value_and_grad(ft.factor_loss), static_argnums=(2, 3)
)


def test_by_hand():
  # Channel means of squares (3, 4)/5 against (1, 0).
  student = np.float32([3.0, 4.0]).reshape(1, 1, 2, 1) ** 0.5
  teacher = np.float32([2.0, 0.0]).reshape(1, 1, 2, 1)
  value, _ = loss_and_grad(student, teacher, 2, 1)
  assert value == pytest.approx((0.4 + 0.8) / 2, rel=1e-6)
  # RepDistiller's cube has a sign, and a loss that could become negative.
  value, _ = loss_and_grad(student, teacher, 2, 3)
  assert value == pytest.approx((0.4**3 + 0.8**3) / 2, rel=1e-6)


@pytest.mark.parametrize('p2', [1, 2])
def test_equal_and_empty_maps_are_finite(p2):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 3, 4)).astype(np.float32)
  x[1] = 0
  value, grad = loss_and_grad(x, x, 2, p2)
  assert value == pytest.approx(0, abs=1e-7)
  assert np.isfinite(grad).all()
  assert np.isfinite(loss_and_grad(0 * x, x, 2, p2)[1]).all()


def test_equal_factors_have_no_gradient():
  student = np.float32([3.0, 0.0]).reshape(1, 1, 2, 1)
  _, grad = loss_and_grad(student, 2 * student, 1, 1)
  assert grad[0, 0, 1, 0] == 0


def shapes(*sizes):
  return view(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes))


VIEWS = shapes((2, 4, 4, 3)), shapes((2, 4, 4, 6))


def test_phases_train_one_network_each():
  def sizes(setting):
    method = ft.FactorTransfer(use_bn=True, k=0.34, setting=setting)
    variables = jax.eval_shape(method.init, jax.random.key(0), *VIEWS)
    found = jax.tree.map(lambda x: x.shape, variables)
    return found['params']['cut_0'], found['state']['cut_0']

  params, state = sizes(PREPARING)
  assert params.keys() == state.keys() == {'paraphraser'}
  kernels = {
    part: [tree[f'conv{i}']['kernel'] for i in (1, 2, 3)]
    for part, tree in params['paraphraser'].items()
  }
  # 2 = int(0.34 * 6) factors; transposed kernels have (out, in) last.
  assert kernels == {
    'encoder': [(3, 3, 6, 6), (3, 3, 6, 2), (3, 3, 2, 2)],
    'decoder': [(3, 3, 2, 2), (3, 3, 6, 2), (3, 3, 6, 6)],
  }
  main_params, main_state = sizes(Setting())
  assert main_params.keys() == {'translator'}
  assert [
    main_params['translator'][f'conv{i}']['kernel'] for i in (1, 2, 3)
  ] == [(3, 3, 3, 3), (3, 3, 3, 2), (3, 3, 2, 2)]
  assert main_state.keys() == {'translator', 'paraphraser'}
  assert main_state['paraphraser'] == {
    'params': params['paraphraser'],
    'batch_stats': state['paraphraser'],
  }


def test_the_paraphraser_goes_from_phase_to_phase():
  main = ft.FactorTransfer(use_bn=True)
  pre = dataclasses.replace(main, setting=PREPARING)

  def init(method, value):
    variables = jax.eval_shape(method.init, jax.random.key(0), *VIEWS)
    return jax.tree.map(lambda x: np.full(x.shape, value), variables)

  def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)

  trained, fresh = init(pre, 1.0), init(main, 2.0)
  adopted = main.adopt(fresh, trained)
  assert_equal(adopted['params'], fresh['params'])
  assert_equal(
    adopted['state']['cut_0'],
    {
      'translator': fresh['state']['cut_0']['translator'],
      'paraphraser': {
        'params': trained['params']['cut_0']['paraphraser'],
        'batch_stats': trained['state']['cut_0']['paraphraser'],
      },
    },
  )
  # The next stage's pre-stage goes on with it.
  assert_equal(pre.adopt(init(pre, 3.0), adopted), trained)
  # Of another size it is of no use, nor at another place.
  other = dataclasses.replace(main, k=0.9)
  fresh = init(other, 4.0)
  assert_equal(other.adopt(fresh, trained), fresh)
  elsewhere = {k: {'cut_5': v['cut_0']} for k, v in trained.items()}
  fresh = init(main, 5.0)
  assert_equal(main.adopt(fresh, elsewhere), fresh)


@pytest.mark.parametrize('preparing', [True, False])
def test_statistics_are_those_of_all_replicas(preparing):
  """And those of the frozen paraphraser are the running ones."""
  setting = Setting(axis_name='replicas', preparing=preparing)
  method = ft.FactorTransfer(use_bn=True, setting=setting)
  x = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 2)).astype(np.float32)
  variables = jax.jit(
    lambda: method.init(jax.random.key(0), view(x[0]), view(x[0]))
  )()

  def loss(x):
    value, _, state = method.loss(variables, view(x), view(x))
    if preparing:
      return value, state, value
    own = {
      'params': variables['params']['cut_0']['translator'],
      'batch_stats': variables['state']['cut_0']['translator'],
    }
    translated, _ = ft.Coder((2, 1, 1), True, axis_name='replicas').apply(
      own, x, True, mutable=['batch_stats']
    )
    frozen = variables['state']['cut_0']['paraphraser']
    target, _ = ft.Paraphraser(2, 1, True).apply(frozen, x, False)
    return value, state, ft.factor_loss(translated, target)

  value, state, expected = jax.jit(jax.vmap(loss, axis_name='replicas'))(x)
  for both in jax.tree.leaves(state):
    np.testing.assert_array_equal(both[0], both[1])
  np.testing.assert_allclose(value, expected, rtol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'p2': 0}, 'ft.p2 = 0: must be above 0'),
    (
      {'pre_fraction': 0.0},
      'ft.pre_fraction = 0.0: must be above 0 and below 1: the paraphraser '
      'has to train',
    ),
  ],
)
def test_misuse(options, message):
  with pytest.raises(UserError) as error:
    ft.FactorTransfer(**options)
  assert str(error.value) == message


def test_no_factors():
  with pytest.raises(UserError) as error:
    ft.FactorTransfer(k=0.1).init(jax.random.key(0), *VIEWS)
  assert str(error.value) == 'ft.k = 0.1: must be at least 1/6, of 6 channels'
