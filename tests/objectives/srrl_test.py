"""SRRL against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax import errors
from cbkd_jax.blocks import View
from cbkd_jax.objectives import srrl

pytestmark = pytest.mark.usefixtures('quick_compilation')


def connector(get, name):
  return {
    'conv': {'kernel': published.conv(get(f'{name}.0.weight'))},
    'norm': published.batch_norm(get, f'{name}.1'),
  }


def variables(params, case, name):
  statistics = published.statistics(lambda n: case[n], f'{name}.1')
  return {
    'params': {'connector': params},
    'state': {'connector': {'norm': statistics}},
  }


def build_vector(get):
  return get('student_feat_0'), connector(get, 'transfer')


def vector(tree, case):
  student, params = tree
  kernel = published.dense(case['cls_t.weight'])
  logits = case['teacher_logits']
  return srrl.SoftmaxRegression().loss(
    variables(params, case, 'transfer'),
    View(jnp.zeros(()), (), (), student),
    View(logits, (), (), case['teacher_feat_0']),
    teacher_classifier=lambda x: x @ kernel + case['cls_t.bias'][None],
  )


def build_map(get):
  return (
    published.feature(get('student_feat_0')),
    get('student_logits'),
    connector(get, 'Connectors'),
  )


def map_form(tree, case):
  student, student_logits, params = tree
  method = srrl.SoftmaxRegression(
    form='map',
    feature=float(case['hp_alpha']),
    logits=float(case['hp_beta']),
  )
  teacher = published.feature(case['teacher_feat_0'])
  return method.loss(
    variables(params, case, 'Connectors'),
    View(jnp.zeros(()), (student,), (), jnp.zeros(())),
    View(case['teacher_logits'], (teacher,), (), teacher.mean((1, 2))),
    # The case has them ready.
    teacher_classifier=lambda _: student_logits,
  )


CASES = [
  ('srrl__sim', build_vector, vector, 'transfer', 8),
  ('srrl__cls', build_map, map_form, 'Connectors', 4 * 4 * 4),
]


@pytest.mark.parametrize(('name', 'build', 'loss', 'prefix', 'count'), CASES)
def test_published(name, build, loss, prefix, count):
  _, state = published.check(name, build, loss)
  found = state['connector']['norm']
  published.check_statistics(name, f'{prefix}.1', found, count)


def test_by_hand():
  one, two = jnp.asarray([[1.0, 2.0]]), jnp.asarray([[3.0, 2.0]])
  logits = jnp.asarray([[0.0, 0.0, 3.0]]), jnp.asarray([[0.0, 3.0, 0.0]])
  value = srrl.srrl_loss(one, two, *logits, feature=5.0, logits=0.5)
  assert value == pytest.approx(5 * 4 / 2 + 0.5 * 18 / 3)
  value, grads = jax.value_and_grad(srrl.srrl_loss, (0, 2))(
    one, one, logits[0], logits[0]
  )
  assert value == 0
  assert not any(g.any() for g in grads)


def test_equal_and_extreme_examples_are_finite():
  """Equal rows have no variance in the connector's normalisation."""
  method = srrl.SoftmaxRegression()
  student, teacher = (
    View(jnp.full((2, 3), 1e4), (), (), jnp.full((2, c), 7.0)) for c in (4, 5)
  )
  kernel = jnp.full((5, 3), 1e3)

  @jax.jit
  def run():
    variables = method.init(jax.random.key(0), student, teacher)

    def scalar(params, pooled):
      return method.loss(
        {**variables, 'params': params},
        student._replace(pooled=pooled),
        teacher,
        teacher_classifier=lambda x: x @ kernel,
      )[0]

    return jax.value_and_grad(scalar, (0, 1))(
      variables['params'], student.pooled
    )

  for leaf in jax.tree.leaves(run()):
    assert np.isfinite(leaf).all()


@pytest.mark.parametrize(('form', 'channels'), [('vector', 4), ('map', 3)])
def test_variables(form, channels):
  def view(map_channels, pooled):
    return jax.eval_shape(
      lambda: View(
        jnp.zeros((2, 7)),
        (jnp.zeros((2, 3, 3, map_channels)),),
        (),
        jnp.zeros((2, pooled)),
      )
    )

  method = srrl.SoftmaxRegression(form=form)
  variables = jax.eval_shape(
    lambda: method.init(jax.random.key(0), view(3, 4), view(6, 6))
  )
  params = variables['params']['connector']
  assert params['conv']['kernel'].shape == (1, 1, channels, 6)
  assert 'bias' not in params['conv']
  assert variables['state']['connector']['norm']['var'].shape == (6,)


def test_misuse():
  with pytest.raises(
    errors.UserError,
    match=r"srrl.form = 'maps': must be one of 'vector', 'map'",
  ):
    srrl.SoftmaxRegression(form='maps')
  with pytest.raises(
    errors.UserError, match=r'srrl.logits = -1.0: must be at le'
  ):
    srrl.SoftmaxRegression(logits=-1.0)
