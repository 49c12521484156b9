"""ReviewKD against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import reviewkd, reviewkd_networks
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Deepest first, as the published list of fusions.
NAMES = ('pooled', 'cut_2', 'cut_1', 'cut_0')


def fusion_params(get, prefix='', attention=True):
  params = {
    f'conv{i}': {'kernel': published.conv(get(f'{prefix}conv{i}.0.weight'))}
    for i in (1, 2)
  } | {
    f'norm{i}': published.batch_norm(get, f'{prefix}conv{i}.1') for i in (1, 2)
  }
  if attention:
    params['attention'] = {
      'kernel': published.conv(get(f'{prefix}att_conv.0.weight')),
      'bias': get(f'{prefix}att_conv.0.bias'),
    }
  return params


def fusion_state(get, prefix=''):
  return {
    f'norm{i}': published.statistics(get, f'{prefix}conv{i}.1') for i in (1, 2)
  }


def check_statistics(name, prefix, found, count):
  for i in (1, 2):
    published.check_statistics(
      name, f'{prefix}conv{i}.1', found[f'norm{i}'], count
    )


@pytest.mark.parametrize(
  ('name', 'maps'), [('many_sizes', 5), ('5x5', 1), ('f32', 1)]
)
def test_hierarchical_loss_published(name, maps):
  def build(get):
    return [published.feature(get(f'student_feat_{i}')) for i in range(maps)]

  def loss(student, case):
    teacher = [
      published.feature(case[f'teacher_feat_{i}']) for i in range(maps)
    ]
    return reviewkd.hcl_loss(student, teacher)

  published.check(f'reviewkd__md_hcl_{name}', build, loss)


@pytest.mark.parametrize('fuse', [True, False])
def test_fusion_published(fuse):
  name = f'reviewkd__md_abf_{"fuse" if fuse else "no_fuse"}'

  def build(get):
    inputs = {'x': published.feature(get('student_feat_0'))}
    if fuse:
      inputs['residual'] = published.feature(get('residual_feat'))
    return inputs | {'params': fusion_params(get, attention=fuse)}

  def loss(tree, case):
    before = fusion_state(case.__getitem__)
    side = int(case['hp_out_shape'])
    module = reviewkd_networks.Fusion(
      7, int(case['hp_mid_channel']), (side, side)
    )
    (out, passed), updated = module.apply(
      {'params': tree['params'], 'batch_stats': before},
      tree['x'],
      tree.get('residual'),
      train=True,
      mutable=['batch_stats'],
    )
    value = sum(
      jnp.sum(published.feature(case[f'weight_{n}']) * x)
      for n, x in (('out', out), ('res', passed))
    )
    return value, updated['batch_stats']

  (after,) = published.check(name, build, loss)
  check_statistics(name, '', after, 3 * 8 * 8 if fuse else 6)


def test_published():
  term = reviewkd.KnowledgeReview(setting=Setting(blocks=3))

  def build(get):
    features = tuple(
      published.feature(get(f'student_feat_{i}')) for i in (1, 2, 3)
    )
    params = {
      name: fusion_params(get, f'abfs.{i}.', attention=i > 0)
      for i, name in enumerate(NAMES)
    }
    return {
      'features': features,
      'pooled': get('student_pooled'),
      'params': params,
    }

  def loss(tree, case):
    state = {
      name: fusion_state(case.__getitem__, f'abfs.{i}.')
      for i, name in enumerate(NAMES)
    }
    # Neither the student's pre-activations nor the teacher's features count.
    student = View(None, tree['features'], (), tree['pooled'])
    teacher = View(
      None,
      (),
      tuple(published.feature(case[f'teacher_feat_{i}']) for i in (1, 2, 3)),
      jnp.asarray(case['teacher_pooled']),
    )
    variables = {'params': tree['params'], 'state': state}
    epoch = jnp.float32(case['hp_epoch'])
    value, _, after = term.loss(variables, student, teacher, epoch=epoch)
    return value, after

  case_name = 'reviewkd__md_full'
  (after,) = published.check(case_name, build, loss)
  for i, (name, side) in enumerate(zip(NAMES, (1, 3, 6, 12))):
    check_statistics(case_name, f'abfs.{i}.', after[name], 4 * side**2)


def test_hierarchical_loss_by_hand():
  # A difference of +1 and -1 in a checkerboard of 2x2: its mean vanishes.
  pattern = jnp.asarray([[1.0, -1.0], [-1.0, 1.0]]).reshape(1, 2, 2, 1)
  value = reviewkd.hcl_loss([pattern], [jnp.zeros((1, 2, 2, 1))])
  assert value == pytest.approx(1 / 1.5)
  value, grads = jax.value_and_grad(reviewkd.hcl_loss)([pattern], [pattern])
  assert value == 0
  assert not np.any(grads)


def test_init_and_warm_up():
  """Sizes that differ between the networks, and the rising weight."""
  random = np.random.default_rng(0)

  def view(sizes, width):
    maps = tuple(
      jnp.asarray(random.normal(size=(2, *size)), jnp.float32) for size in sizes
    )
    pooled = jnp.asarray(random.normal(size=(2, width)), jnp.float32)
    return View(None, maps, maps, pooled)

  student = view([(4, 4, 3), (3, 3, 5)], 5)
  teacher = view([(6, 6, 4), (2, 2, 7)], 7)
  term = reviewkd.KnowledgeReview(setting=Setting(blocks=2, trained=(1,)))
  shapes = jax.eval_shape(lambda: (student, teacher))
  variables = jax.jit(lambda key: term.init(key, *shapes))(jax.random.key(0))
  kernels = {
    name: tree['conv2']['kernel'].shape
    for name, tree in variables['params'].items()
  }
  assert kernels == {
    'pooled': (3, 3, 5, 7),
    'cut_1': (3, 3, 5, 7),
    'cut_0': (3, 3, 5, 4),
  }
  assert 'attention' not in variables['params']['pooled']
  assert variables['params']['cut_0']['attention']['kernel'].shape[2:] == (
    10,
    2,
  )

  @jax.jit
  def loss(epoch):
    return term.loss(variables, student, teacher, epoch=epoch)

  values = {e: float(loss(jnp.float32(e))[0]) for e in (5, 20, 40)}
  assert values[5] == pytest.approx(values[20] / 4, rel=1e-6)
  assert values[20] == values[40] > 0
  state = loss(jnp.float32(1))[2]
  assert jax.tree.structure(state) == jax.tree.structure(variables['state'])


def test_a_negative_warm_up_is_refused():
  with pytest.raises(UserError, match=r'^reviewkd\.warmup = -1: must be at le'):
    reviewkd.KnowledgeReview(warmup=-1)
