"""FT against published and hand-made numbers."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ft, ft_networks
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

PREPARING = Setting(preparing=True)
CASE = 'ft__rep_translator_paraphraser'


def view(*features):
  return View(None, features, features, None)


def layers(prefix):
  """Our names of three torch layers' parts, and theirs."""
  return [
    (f'{kind}{i + 1}', f'{prefix}.{3 * i + j}')
    for i in range(3)
    for j, kind in enumerate(('conv', 'norm'))
  ]


def coder(get, prefix, use_bn):
  params = {}
  for ours, theirs in layers(prefix):
    if ours.startswith('conv'):
      kernel = published.conv(get(f'{theirs}.weight'))
      params[ours] = {'kernel': kernel, 'bias': get(f'{theirs}.bias')}
    elif use_bn:
      params[ours] = published.batch_norm(get, theirs)
  return params


def running(get, prefix):
  return {
    ours: published.statistics(get, theirs)
    for ours, theirs in layers(prefix)
    if ours.startswith('norm')
  }


def autoencoder(get, prefix='', use_bn=False):
  return {n: coder(get, f'{prefix}{n}', use_bn) for n in ('encoder', 'decoder')}


def reconstruction(params, case):
  """(loss, new state) of the pre-stage."""
  use_bn = bool(case['hp_use_bn'])
  method = ft.FactorTransfer(
    k=float(case['hp_k']), use_bn=use_bn, setting=PREPARING
  )
  stats = {n: running(lambda m: case[m], n) for n in params} if use_bn else {}
  teacher = view(jnp.asarray(published.feature(case['teacher_feat_0'])))
  value, _, state = method.loss(
    {
      'params': {'cut_0': {'paraphraser': params}},
      'state': {'cut_0': {'paraphraser': jax.tree.map(jnp.asarray, stats)}},
    },
    teacher,
    teacher,
  )
  return value, state


def transfer(tree, case):
  """(loss, new state) of the student's stage."""

  def get(name):
    return jnp.asarray(case[name])

  method = ft.FactorTransfer(
    p1=int(case['hp_p1']), p2=int(case['hp_p2']), k=float(case['hp_k'])
  )
  frozen = autoencoder(get, 'paraphraser.')
  state = {
    'translator': running(get, 'translator.encoder'),
    'paraphraser': {'params': frozen, 'batch_stats': {}},
  }
  value, _, state = method.loss(
    {
      'params': {'cut_0': {'translator': tree['translator']}},
      'state': {'cut_0': state},
    },
    view(tree['student']),
    view(published.feature(get('teacher_feat_0'))),
  )
  return value, state


def build_transfer(get):
  return {
    'student': published.feature(get('student_feat_0')),
    'translator': coder(get, 'translator.encoder', True),
  }


def check_statistics(name, prefix, found, count):
  for ours, theirs in layers(prefix):
    if ours.startswith('norm'):
      published.check_statistics(name, theirs, found[ours], count)


@pytest.mark.parametrize('use_bn', [False, True])
def test_the_paraphraser_published(use_bn):
  name = 'ft__rep_paraphraser_reconstruction' + '_bn' * use_bn
  (state,) = published.check(
    name, lambda get: autoencoder(get, use_bn=use_bn), reconstruction
  )
  if use_bn:
    for part, found in state['cut_0']['paraphraser'].items():
      check_statistics(name, part, found, 4 * 5 * 5)


def test_the_translator_published():
  (state,) = published.check(CASE, build_transfer, transfer)
  state = state['cut_0']
  check_statistics(CASE, 'translator.encoder', state['translator'], 4 * 6 * 6)
  # What is frozen comes out as it went in.
  case = golden.load(f'losses/{CASE}')
  frozen = autoencoder(lambda n: case[n], 'paraphraser.')
  jax.tree.map(
    np.testing.assert_array_equal,
    state['paraphraser'],
    {'params': frozen, 'batch_stats': {}},
  )


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
    translated, _ = ft_networks.Coder(
      (2, 1, 1), True, axis_name='replicas'
    ).apply(own, x, True, mutable=['batch_stats'])
    frozen = variables['state']['cut_0']['paraphraser']
    target, _ = ft_networks.Paraphraser(2, 1, True).apply(frozen, x, False)
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
