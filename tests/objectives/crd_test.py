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
  case = golden.load(f'losses/crd__{name}')

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

  published.check(f'crd__{name}', build, loss)
  with jax.enable_x64(name.startswith('rep')):
    after = jax.jit(lambda tree: loss(tree, case)[1])(build(case.__getitem__))
  # Z, once set, stays: there is no new value then.
  expected = state_of(lambda n: case.get(f'after_{n}', case[n]))
  for key, ours in after.items():
    np.testing.assert_allclose(
      ours, expected[key], rtol=2e-6, atol=2e-7, err_msg=key
    )


def test_contrast_by_hand():
  # p = 1/2 of the positive and 1/4 of both negatives, m = 2/8 (e is small).
  logits = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]]))
  expected = -math.log(0.5 / 0.75) - 2 * math.log(0.25 / 0.5)
  value = crd.contrast(logits, jnp.float32(4), 8)
  assert value == pytest.approx(expected, rel=1e-5)


def test_contrast_is_finite_at_extremes():
  logits = jnp.asarray([[0.0, 85.0, -85.0], [-500.0, 500.0, 0.0]])
  call = jax.jit(jax.value_and_grad(lambda x, z: crd.contrast(x, z, 50)))
  for z in 1e-30, 1e30:
    value, grad = call(logits, jnp.float32(z))
    assert np.isfinite(value)
    assert np.isfinite(grad).all()


def test_negatives_are_of_all_other_classes():
  draw = jax.jit(crd.draw_negatives, static_argnums=3)
  labels = jnp.arange(4)
  keys = jax.random.split(jax.random.key(0), 4)
  drawn = np.asarray(draw(keys, labels, jnp.asarray(TRAIN_LABELS), 4000))
  assert drawn.shape == (4, 4000)
  for row, label in zip(drawn, range(4)):
    others = np.flatnonzero(label != TRAIN_LABELS)
    found, counts = np.unique(row, return_counts=True)
    np.testing.assert_array_equal(found, others)
    # Uniform: about 4000 / len(others) each, five standard deviations.
    expected = 4000 / len(others)
    assert np.abs(counts - expected).max() < 5 * math.sqrt(expected)
  # Of a single class, examples of that class: there must be some.
  drawn = draw(keys, labels, jnp.full(12, 2), 4000)
  assert ((drawn >= 0) & (drawn < 12)).all()


def test_bank_rows_of_an_example_that_comes_twice():
  bank = jnp.asarray([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
  embedded = jnp.asarray([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
  new = jax.jit(crd.update_bank)(bank, jnp.asarray([2, 1, 2]), embedded, 0.5)
  half = math.sqrt(0.5)
  last = np.asarray([-0.2, 0.4])
  expected = [[1, 0], [half, half], last / np.linalg.norm(last)]
  np.testing.assert_allclose(new, np.asarray(expected), rtol=1e-6)


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
