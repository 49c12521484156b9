"""SemCKD against published and hand-made numbers."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax import errors
from cbkd_jax.blocks import View
from cbkd_jax.objectives import semckd
from cbkd_jax.objectives.maps import flatten
from cbkd_jax.objectives.method import Setting
from cbkd_jax.objectives.relations import gram
from cbkd_jax.objectives.semckd_networks import Embedding

pytestmark = pytest.mark.usefixtures('quick_compilation')

# (golden case, student layers, teacher layers, names of queries and keys).
CASES = [
  ('semckd__sem', 2, 3, 'query_weight', 'key_weight'),
  ('semckd__sim_soft1_f32', 2, 2, 'query_', 'key_'),
]


def view(features):
  return View(jnp.zeros(()), tuple(features), (), jnp.zeros(()))


def embedding(get, name):
  return {
    f'dense{i}': {
      'kernel': published.dense(get(f'{name}.linear{i}.weight')),
      'bias': get(f'{name}.linear{i}.bias'),
    }
    for i in (1, 2)
  }


def projection(get, name):
  tree = {}
  for i, at in enumerate((0, 3, 6), 1):
    kernel = published.conv(get(f'{name}.regressor.{at}.weight'))
    tree[f'conv{i}'] = {'kernel': kernel}
  for i, at in enumerate((1, 4), 1):
    tree[f'norm{i}'] = published.batch_norm(get, f'{name}.regressor.{at}')
  return tree


def statistics(get, name):
  return {
    f'norm{i}': published.statistics(get, f'{name}.regressor.{at}')
    for i, at in enumerate((1, 4), 1)
  }


def pairs(students, teachers, make):
  return {
    f'cut_{i}': {f'cut_{j}': make(f'regressor{i}{j}') for j in range(teachers)}
    for i in range(students)
  }


def run(case, students, teachers, tree):
  state = pairs(
    students, teachers, lambda name: statistics(lambda n: case[n], name)
  )
  batch = int(case['hp_batch_size'])
  method = semckd.SemanticCalibration(
    factor=int(case['hp_factor']),
    soft=float(case.get('hp_soft', 1.0)),
    setting=Setting(
      blocks=students, trained=tuple(range(students)), batch_size=batch
    ),
  )
  teacher = [
    published.feature(case[f'teacher_feat_{j}']) for j in range(teachers)
  ]
  student, params = tree
  variables = {'params': params, 'state': state}
  return method.loss(variables, view(student), view(teacher))


def build(students, teachers, query, key):
  def tree(get):
    student = [
      published.feature(get(f'student_feat_{i}')) for i in range(students)
    ]
    return student, {
      'queries': {
        f'cut_{i}': embedding(get, f'{query}{i}') for i in range(students)
      },
      'keys': {
        f'cut_{j}': embedding(get, f'{key}{j}') for j in range(teachers)
      },
      'projections': pairs(
        students, teachers, lambda name: projection(get, name)
      ),
    }

  return tree


@pytest.mark.parametrize(
  ('name', 'students', 'teachers', 'query', 'key'), CASES
)
def test_published(name, students, teachers, query, key):
  _, state = published.check(
    name,
    build(students, teachers, query, key),
    lambda tree, case: run(case, students, teachers, tree),
  )
  case = golden.load(f'losses/{name}')
  for i in range(students):
    for j in range(teachers):
      # Positions at the smaller of the two sizes.
      sides = (
        case[f'{side}_feat_{k}'].shape[-1]
        for side, k in (('student', i), ('teacher', j))
      )
      count = int(case['hp_batch_size']) * min(sides) ** 2
      found = state[f'cut_{i}'][f'cut_{j}']
      for norm, at in ('norm1', 1), ('norm2', 4):
        published.check_statistics(
          name, f'regressor{i}{j}.regressor.{at}', found[norm], count
        )


def test_published_attention():
  case = golden.load('losses/semckd__sem')
  with jax.enable_x64():
    _, params = build(*CASES[0][1:])(lambda n: case[n])

    def embedded(side, params):
      rows = [
        gram(flatten(published.feature(case[f'{side}_feat_{i}'])))
        for i in range(len(params))
      ]
      embed = Embedding(int(case['hp_batch_size']) // 4)
      found = [
        embed.apply({'params': params[f'cut_{i}']}, row)
        for i, row in enumerate(rows)
      ]
      return jnp.stack(found, axis=1)

    @jax.jit
    def weights(params):
      return semckd.attention(
        embedded('student', params['queries']),
        embedded('teacher', params['keys']),
      )

    found = weights(params)
  np.testing.assert_allclose(found, case['aux_attention'], rtol=1e-9)


def test_by_hand():
  # One example; its layers weigh (1/4, 3/4) and (1/2, 1/2).
  queries = jnp.asarray([[[1.0, 0.0], [0.0, 1.0]]])
  keys = jnp.asarray([[[0.0, 2.0], [2 * np.log(3), 2.0]]])
  weights = semckd.attention(queries, keys, soft=2.0)
  np.testing.assert_allclose(weights, [[[0.25, 0.75], [0.5, 0.5]]], rtol=1e-6)
  distances = jnp.asarray([[[4.0, 8.0], [1.0, 3.0]]])
  value = semckd.semckd_loss(weights, distances)
  assert value == pytest.approx((1 + 6 + 0.5 + 1.5) / 2, rel=1e-6)


def shape(*dimensions):
  return jax.ShapeDtypeStruct(dimensions, jnp.float32)


SETTING = Setting(blocks=2, trained=(1,), batch_size=16, replicas=2)


def init(method, rng=None):
  student = view([shape(8, 4, 4, 3), shape(8, 2, 2, 5)])
  teacher = view([shape(8, 4, 4, 6), shape(8, 4, 4, 7)])
  return method.init(rng, student, teacher)


def shapes_of(method):
  return jax.eval_shape(lambda rng: init(method, rng), jax.random.key(0))


@pytest.mark.parametrize(('global_batch', 'columns'), [(False, 8), (True, 16)])
def test_variables(global_batch, columns):
  method = semckd.SemanticCalibration(
    setting=SETTING, global_batch=global_batch
  )
  params = shapes_of(method)['params']
  # The student's constant block is left out, the teacher's is not.
  assert list(params['queries']) == ['cut_1']
  assert list(params['keys']) == ['cut_0', 'cut_1']
  kernels = {n: v['kernel'].shape for n, v in params['keys']['cut_1'].items()}
  assert kernels == {
    'dense1': (columns, columns // 2),
    'dense2': (columns // 2, columns // 4),
  }
  convs = params['projections']['cut_1']['cut_1']
  assert [convs[f'conv{i}']['kernel'].shape for i in (1, 2, 3)] == [
    (1, 1, 5, 14),
    (3, 3, 14, 14),
    (1, 1, 14, 7),
  ]


def test_embeddings_of_nothing_have_a_small_gradient():
  """Few examples make few units, and at first none may be active."""
  method = semckd.SemanticCalibration(setting=SETTING)
  student = view([jnp.ones((8, 2, 2, 3)), jnp.zeros((8, 2, 2, 3))])
  teacher = view([jnp.full((8, 2, 2, 4), c) for c in (1.0, -2.0)])

  random = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: random.normal(size=x.shape).astype(np.float32),
    jax.eval_shape(
      lambda rng: method.init(rng, student, teacher), jax.random.key(0)
    ),
  )
  params = variables['params']
  nothing = jax.tree.map(jnp.zeros_like, params['queries'])

  @jax.jit
  @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
  def run(queries, features):
    value, _, state = method.loss(
      {**variables, 'params': {**params, 'queries': queries}},
      student._replace(features=features),
      teacher,
    )
    return value, state

  (_, state), grads = run(nothing, student.features)
  assert jax.tree.structure(state) == jax.tree.structure(variables['state'])
  for leaf in jax.tree.leaves(grads):
    assert np.isfinite(leaf).all()
  assert 0 < np.abs(grads[0]['cut_1']['dense2']['bias']).max() < 1e4


def test_misuse():
  with pytest.raises(
    errors.UserError, match=r'semckd.soft = 0.0: must be abov'
  ):
    semckd.SemanticCalibration(soft=0.0)
  with pytest.raises(
    errors.UserError, match=r'semckd.factor = 0: must be abov'
  ):
    semckd.SemanticCalibration(factor=0)
  method = semckd.SemanticCalibration(setting=SETTING, factor=9)
  with pytest.raises(
    errors.UserError, match=r'semckd.factor = 9: must be at most 8'
  ):
    shapes_of(method)
