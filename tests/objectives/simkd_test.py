"""SimKD against published and hand-made numbers, and the head it leaves."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax import errors
from cbkd_jax.blocks import View
from cbkd_jax.models import layers, wrn
from cbkd_jax.objectives import maps, simkd

pytestmark = pytest.mark.usefixtures('quick_compilation')

NAME = 'simkd__student_larger'


def view(x):
  return View(jnp.zeros(()), (x,), (), jnp.zeros(()))


def projector(get):
  tree = {}
  for i in range(3):
    tree[f'conv{i + 1}'] = {
      'kernel': published.conv(get(f'transfer.{3 * i}.weight'))
    }
    tree[f'norm{i + 1}'] = published.batch_norm(get, f'transfer.{3 * i + 1}')
  return {'projector': tree}


def statistics(get):
  return {
    'projector': {
      f'norm{i + 1}': published.statistics(get, f'transfer.{3 * i + 1}')
      for i in range(3)
    }
  }


def build(get):
  return published.feature(get('student_feat_0')), projector(get)


def run(tree, case):
  student, params = tree
  teacher = published.feature(case['teacher_feat_0'])
  method = simkd.ReusedClassifier(factor=int(case['hp_factor']))
  variables = {'params': params, 'state': statistics(lambda n: case[n])}
  return method.loss(variables, view(student), view(teacher))


def check_statistics(found):
  for i in range(3):
    published.check_statistics(
      NAME,
      f'transfer.{3 * i + 1}',
      found['projector'][f'norm{i + 1}'],
      3 * 4 * 4,
    )


def test_published():
  _, state = published.check(NAME, build, run)
  check_statistics(state)


def test_published_prediction():
  case = golden.load(f'losses/{NAME}')
  head = layers.PoolingHead(10)
  with jax.enable_x64():
    student, params = jax.tree.map(jnp.asarray, build(lambda n: case[n]))
    variables = {'params': params, 'state': statistics(lambda n: case[n])}
    classifier = {
      'kernel': jnp.asarray(published.dense(case['cls_t.weight'])),
      'bias': jnp.asarray(case['cls_t.bias']),
    }
    classifier = {'classifier': classifier}
    # The case's student is larger; a head is for maps that need no pooling.
    small = maps.adaptive_average_pool(student, (4, 4))
    method = simkd.ReusedClassifier(factor=4)

    @jax.jit
    def both(variables, small):
      logits = method.predict(
        variables,
        view(small),
        lambda x: head.apply({'params': classifier}, x, train=False),
      )
      own, stats = method.head_variables(variables, (classifier, {}))
      out, updated = method.student_head(head, 8).apply(
        {'params': own, 'batch_stats': stats},
        small,
        train=True,
        mutable=['batch_stats'],
      )
      return logits, out.logits, updated['batch_stats']

    *logits, updated = both(variables, small)
  # A head pools in float32.
  for found in logits:
    np.testing.assert_allclose(found, case['aux_pred_feat_s'], atol=1e-6)
  check_statistics(updated)


def test_by_hand():
  one = jnp.asarray([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 1, 2)
  two = jnp.asarray([1.0, 0.0, 3.0, 1.0]).reshape(1, 2, 1, 2)
  assert simkd.simkd_loss(one, two) == pytest.approx((4 + 9) / 4)
  value, grad = jax.value_and_grad(simkd.simkd_loss)(one, one)
  assert value == 0
  assert not grad.any()


def shape(*dimensions):
  return jax.ShapeDtypeStruct(dimensions, jnp.float32)


def init(method, student, teacher):
  return jax.eval_shape(
    lambda rng: method.init(rng, view(student), view(teacher)),
    jax.random.key(0),
  )


@pytest.mark.parametrize('head', [layers.PoolingHead(7), wrn.WideHead(7)])
def test_the_students_head(head):
  method = simkd.ReusedClassifier()
  variables = init(method, shape(2, 4, 4, 3), shape(2, 4, 4, 6))
  assert variables['params']['projector']['conv2']['kernel'].shape == (
    (3, 3, 3, 3)
  )
  theirs = jax.eval_shape(
    lambda: head.init(jax.random.key(0), jnp.zeros((1, 4, 4, 6)), train=False)
  )
  module = method.student_head(head, 6)
  ours = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros((1, 4, 4, 3)), train=False)
  )
  params, stats = method.head_variables(
    variables, (theirs['params'], theirs.get('batch_stats', {}))
  )
  assert (params, stats) == (ours['params'], ours['batch_stats'])
  assert set(params) == {'projector', 'head'}


def test_the_teachers_head_stays_as_it_is():
  module = simkd.ReusedClassifier().student_head(wrn.WideHead(3), 4)
  x = jax.random.normal(jax.random.key(0), (2, 2, 2, 3))
  variables = jax.jit(lambda: module.init(jax.random.key(1), x, train=False))()

  @jax.jit
  def run(variables):
    out, updated = module.apply(
      variables, x, train=True, mutable=['batch_stats']
    )
    return out, updated['batch_stats']

  out, after = run(variables)
  assert out.normalized_input is None
  before = variables['batch_stats']
  jax.tree.map(np.testing.assert_array_equal, after['head'], before['head'])
  changed = jax.tree.map(
    lambda a, b: bool((a != b).any()), after['projector'], before['projector']
  )
  assert all(jax.tree.leaves(changed))


def test_the_projector_goes_on_with_the_student():
  method = simkd.ReusedClassifier()
  first, second, wider = (
    init(method, shape(2, 4, 4, c), shape(2, 4, 4, 6)) for c in (3, 3, 5)
  )
  assert method.adopt(second, first) is first
  assert method.adopt(second, wider) is second
  assert method.adopt(second, {'params': {}, 'state': {}}) is second


def test_misuse():
  with pytest.raises(
    errors.UserError, match=r'simkd.factor = 0: must be above'
  ):
    simkd.ReusedClassifier(factor=0)
  same = shape(2, 4, 4, 6)
  with pytest.raises(errors.UserError, match='factor = 7: must be at most 6'):
    init(simkd.ReusedClassifier(factor=7), same, same)
  with pytest.raises(errors.UserError, match='is 4x5, larger than the teacher'):
    init(simkd.ReusedClassifier(), shape(2, 4, 5, 6), same)
  # A smaller one is fine: the loss pools the teacher's.
  init(simkd.ReusedClassifier(), shape(2, 2, 2, 6), same)
