"""CRD against published numbers; its negatives, banks and replicas."""

import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import crd
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

TRAIN_LABELS = np.asarray([2, 0, 1, 1, 2, 2, 0, 1, 2, 0, 3, 2])


def view(pooled):
  return View(None, (), (), jnp.asarray(pooled))


@pytest.mark.parametrize(
  'name', ['rep_first_batch', 'rep_Z_already_set', 'md_first_batch_f32']
)
def test_published(name):
  def build(get):
    params = {
      f'embed_{side}': {
        'dense': {
          'kernel': published.dense(get(f'embed_{side}.linear.weight')),
          'bias': get(f'embed_{side}.linear.bias'),
        }
      }
      for side in 'st'
    }
    return {'student': get('student_feat_0'), 'params': params}

  def state_of(get):
    params = get('contrast.params')
    return {
      'bank_student': get('contrast.memory_v1'),
      'bank_teacher': get('contrast.memory_v2'),
      'z_student': params[2],
      'z_teacher': params[3],
    }

  def loss(tree, case):
    term = crd.ContrastiveRepresentationDistillation(
      dimension=int(case['hp_feat_dim']),
      negatives=int(case['hp_nce_k']),
      temperature=float(case['hp_nce_t']),
      momentum=float(case['hp_nce_m']),
    )
    chosen = case['contrast_index']
    np.testing.assert_array_equal(chosen[:, 0], case['index'])
    variables = {
      'params': tree['params'],
      'state': jax.tree.map(jnp.asarray, state_of(case.__getitem__)),
    }
    value, _, after = term.against(
      variables, view(tree['student']), view(case['teacher_feat_0']), chosen
    )
    return value, after

  (after,) = published.check(f'crd__{name}', build, loss)
  case = golden.load(f'losses/crd__{name}')
  # Z, once set, stays: there is no new value then.
  expected = state_of(lambda n: case.get(f'after_{n}', case[n]))
  for key, ours in after.items():
    np.testing.assert_allclose(
      ours, expected[key], rtol=2e-6, atol=2e-7, err_msg=key
    )


def make(replicas=1, axis_name=None, **options):
  setting = Setting(
    batch_size=4,
    train_size=len(TRAIN_LABELS),
    replicas=replicas,
    axis_name=axis_name,
  )
  return crd.ContrastiveRepresentationDistillation(
    setting=setting, dimension=5, negatives=7, **options
  )


@pytest.fixture(scope='module')
def batch():
  random = np.random.default_rng(0)
  student, teacher = (
    jnp.asarray(random.normal(size=(4, width)), jnp.float32) for width in (3, 6)
  )
  # Zeros have no direction.
  student = student.at[1].set(0)
  indices = jnp.asarray([3, 0, 8, 5])
  needed = {
    'labels': jnp.asarray(TRAIN_LABELS)[indices],
    'indices': indices,
    'keys': jax.random.split(jax.random.key(1), 4),
  }
  init = jax.jit(lambda key, *x: make().init(key, *map(view, x)))
  variables = init(jax.random.key(2), student, teacher)
  return variables, student, teacher, needed


def step(term, variables, student, teacher, needed):
  def loss(params):
    value, _, state = term.loss(
      {'params': params, 'state': variables['state']},
      view(student),
      view(teacher),
      train_labels=jnp.asarray(TRAIN_LABELS),
      **needed,
    )
    return value, state

  found, grads = jax.value_and_grad(loss, has_aux=True)(variables['params'])
  return found, grads


def test_init_and_one_step(batch):
  variables = batch[0]
  shapes = jax.tree.map(jnp.shape, variables)
  assert shapes['params'] == {
    'embed_s': {'dense': {'kernel': (3, 5), 'bias': (5,)}},
    'embed_t': {'dense': {'kernel': (6, 5), 'bias': (5,)}},
  }
  banks = [
    variables['state'][f'bank_{side}'] for side in ('student', 'teacher')
  ]
  assert all(b.shape == (12, 5) for b in banks)
  assert all(0.7 < jnp.abs(b).max() <= math.sqrt(0.6) for b in banks)
  assert not np.array_equal(*banks)
  (value, state), grads = jax.jit(step, static_argnums=0)(make(), *batch)
  assert jax.tree.map(jnp.shape, state) == shapes['state']
  assert np.isfinite(value)
  leaves = jax.tree.leaves(grads)
  assert all(np.isfinite(g).all() and np.any(g) for g in leaves)
  assert min(state['z_student'], state['z_teacher']) > 0
  moved = np.any(state['bank_teacher'] != banks[1], axis=1)
  np.testing.assert_array_equal(np.flatnonzero(moved), [0, 3, 5, 8])


@pytest.mark.skipif(jax.device_count() < 2, reason='needs two devices')
def test_two_replicas_take_the_step_of_one(batch):
  variables, *examples = batch
  (value, state), grads = jax.jit(step, static_argnums=0)(make(), *batch)
  term = make(2, 'batch')
  keys = examples[2]['keys']
  halves = jax.tree.map(
    lambda x: x.reshape(2, 2, *x.shape[1:]),
    [*examples[:2], {k: v for k, v in examples[2].items() if k != 'keys'}],
  )

  def replica(variables, student, teacher, needed, keys):
    found = step(term, variables, student, teacher, needed | {'keys': keys})
    (value, state), grads = found
    return jax.lax.pmean((value, grads), 'batch'), state

  (values, many), states = jax.pmap(
    replica, axis_name='batch', in_axes=(None, 0, 0, 0, 0)
  )(variables, *halves, keys.reshape(2, 2))
  np.testing.assert_allclose(values[0], value, rtol=1e-5)

  def close(a, b):
    np.testing.assert_allclose(a[0], b, rtol=1e-4, atol=1e-5)

  jax.tree.map(close, many, grads)
  jax.tree.map(close, states, state)
  jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), states)


def test_misuse(batch):
  with pytest.raises(UserError, match=r'^crd\.temperature = 0\.01: must be at'):
    make(temperature=0.01)
  with pytest.raises(UserError, match=r'^crd\.momentum = 1\.0: must be from 0'):
    make(momentum=1.0)
  setting = Setting(blocks=2, train_size=9)
  term = crd.ContrastiveRepresentationDistillation(setting=setting, at='cuts')
  shape = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
  maps = View(None, (shape, shape), (), None)
  with pytest.raises(UserError, match=r"^crd\.at = 'cuts': means the blocks 0"):
    term.init(jax.random.key(0), maps, maps)
