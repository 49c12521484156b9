"""The expression, and how terms add up to an objective."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax import objectives
from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ce, kd, method

pytestmark = pytest.mark.usefixtures('quick_compilation')


SHARP = {'label_smoothing': 0.0}


def view(logits):
  return View(jnp.asarray(logits), (), (), jnp.zeros(()))


def kd_options(temperature):
  return {'temperature': temperature, 'standardize': False}


def terms(expression):
  """(weight, key, options) of each term."""
  return [
    (t.weight, t.key, {n: getattr(t.method, n) for n in t.method.options()})
    for t in objectives.parse(expression).terms
  ]


@pytest.mark.parametrize(
  ('expression', 'expected'),
  [
    ('ce', [(1.0, 'ce', SHARP)]),
    ('2*ce', [(2.0, 'ce', SHARP)]),
    ('ce*2', [(2.0, 'ce', SHARP)]),
    ('2*ce*0.25', [(0.5, 'ce', SHARP)]),
    ('2*0.5*ce', [(1.0, 'ce', SHARP)]),
    ('0*ce', [(0.0, 'ce', SHARP)]),
    ('-1*-2*ce', [(2.0, 'ce', SHARP)]),
    ('1e-3*ce', [(0.001, 'ce', SHARP)]),
    (' ce +\tce()', [(1.0, 'ce', SHARP), (1.0, 'ce_2', SHARP)]),
    # A bare name is the published recipe, in a sum it is the method.
    ('kd', [(0.1, 'ce', SHARP), (0.9, 'kd', kd_options(4.0))]),
    ('kd()', [(1.0, 'kd', kd_options(4.0))]),
    ('1*kd', [(1.0, 'kd', kd_options(4.0))]),
    ('ce + kd', [(1.0, 'ce', SHARP), (1.0, 'kd', kd_options(4.0))]),
    (
      '0.1*ce + 0.9*kd(temperature=2) + (kd(temperature=1) + ce)',
      [
        (0.1, 'ce', SHARP),
        (0.9, 'kd', kd_options(2.0)),
        (1.0, 'kd_2', kd_options(1.0)),
        (1.0, 'ce_2', SHARP),
      ],
    ),
    (
      'kd(temperature=1) + kd + 2*kd',
      [
        (1.0, 'kd', kd_options(1.0)),
        (1.0, 'kd_2', kd_options(4.0)),
        (2.0, 'kd_3', kd_options(4.0)),
      ],
    ),
  ],
)
def test_parse(expression, expected):
  assert terms(expression) == expected


def test_an_objective_in_full_parses_to_itself():
  full = str(objectives.parse('kd'))
  assert full == (
    '0.1*ce(label_smoothing=0.0) + 0.9*kd(temperature=4.0, standardize=False)'
  )
  assert objectives.parse(full) == objectives.parse('kd')
  assert str(objectives.parse('ce()')) == 'ce(label_smoothing=0.0)'
  exact = objectives.parse('0.123456789*ce + ce')
  assert objectives.parse(str(exact)) == exact


def test_equal_objectives_are_equal_and_hash_alike():
  one, two = objectives.parse('kd'), objectives.parse('0.9*kd*1 + 0.1*ce')
  assert one != two
  assert objectives.parse('kd') == one
  assert hash(objectives.parse('kd')) == hash(one)


@pytest.mark.parametrize(
  ('expression', 'message'),
  [
    ('', 'not an objective'),
    ('0.1*', 'not an objective'),
    ('kd(', 'not an objective'),
    ('kd(temperature=)', 'not an objective'),
    ('ce; kd', 'not an objective'),
    ('ce\n+ kd', 'not an objective'),
    ('x = ce', 'not an objective'),
    ('ce\0', 'not an objective'),
    ('(' * 500 + 'ce' + ')' * 500, 'not an objective'),
    ('1', "'1' is not a term"),
    ("'ce'", 'is not a term'),
    ('ce - kd', 'is not a term'),
    ('ce / 2', 'is not a term'),
    ('-ce', 'is not a term'),
    ('+ce', 'is not a term'),
    ('ce + 1', "'1' is not a term"),
    ('2*3', 'is not a term'),
    ('ce*kd', 'is not a term'),
    ('2*(ce + kd)', 'is not a term'),
    ('True*ce', 'is not a term'),
    ('2j*ce', 'is not a term'),
    ('[ce]', 'is not a term'),
    ('lambda: ce', 'is not a term'),
    ('-1*ce', 'weight -1.0 is out of range'),
    ('1e999*ce', 'weight inf is out of range'),
    ('1e999*0*ce', 'weight nan is out of range'),
    ('dk', "method 'dk' is not known; did you mean 'dkd'?"),
    ('ce + kdd(temperature=4)', "did you mean 'kd'?"),
    ('nothing', "'nothing' is not known; known: ab, at, cc, ce"),
    ('kd.loss()', "'kd.loss' is not a method's name"),
    ('kd()()', "is not a method's name"),
    ("__import__('os')", "method '__import__' is not known"),
    (
      'simkd() + simkd(factor=4)',
      'simkd and simkd_2 each give the student a head; one can',
    ),
    ('kd(4)', 'options are named, e.g. kd(temperature=4.0, stand'),
    ('ce(1)', 'options are named, e.g. ce(label_smoothing=0.0)'),
    (
      'kd(temperature=1, temperature=2)',
      "kd: option 'temperature' is given twice",
    ),
    ('kd(*x)', 'options are named'),
    ('kd(temprature=4)', "option 'temprature' is not known; did you mean"),
    (
      'ce(temperature=4)',
      "option 'temperature' is not known; known: label_smoothing",
    ),
    ("kd(**{'temperature': 4})", "option 'None' is not known"),
    ("kd(temperature='4')", "kd.temperature = '4': must be of type float"),
    ('kd(temperature=True)', 'kd.temperature = True: must be of type float'),
    ('kd(temperature=None)', 'must be of type float'),
    ('kd(temperature=x)', 'kd.temperature = x: must be a plain value'),
    ('kd(temperature=[1][0])', 'must be a plain value'),
    ('kd(temperature=2**2)', 'must be a plain value'),
    ('kd(temperature={[]: 1})', 'must be a plain value'),
    ('kd(temperature=0)', 'kd.temperature = 0.0: must be above 0'),
    ('kd(temperature=-1)', 'kd.temperature = -1.0: must be above 0'),
    ('kd(temperature=1e999)', 'kd.temperature = inf: must be above 0'),
    (f'kd(temperature=1{"0" * 400})', 'int too large'),
    (f'1{"0" * 400}*ce', 'int too large'),
    # Python's own parser, or ours: which gives up first depends on the version.
    ('+'.join(['ce'] * 5000), 'objective'),
  ],
)
def test_malformed(expression, message):
  with pytest.raises(UserError) as caught:
    objectives.parse(expression, 'thaw.objective')
  error = str(caught.value)
  assert message in error
  assert error.startswith('thaw.objective = ')
  assert '\n' not in error


def test_every_method_parses_by_its_name_and_says_what_it_needs():
  for name, cls in objectives.METHODS.items():
    bare = objectives.parse(name)
    assert any(type(t.method) is cls for t in bare.terms)
    assert bare == objectives.parse(cls.recipe)
    assert set(cls.needs) <= set(method.AVAILABLE)
    assert cls.paper


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('kd', ['kd']),
    (' kd, dkd ,', ['kd', 'dkd']),
    (
      'ce + at(power=2, at=(1, 2)),kd(temperature=2)',
      ['ce + at(power=2, at=(1, 2))', 'kd(temperature=2)'],
    ),
    (',', []),
  ],
)
def test_split(text, expected):
  assert objectives.split(text) == expected


def test_uses_teacher():
  assert objectives.parse('kd').uses_teacher
  assert not objectives.parse('ce + 2*ce').uses_teacher


def test_ce_by_hand():
  logits = jnp.asarray([[math.log(3), 0.0], [0.0, 0.0]])
  value = ce.cross_entropy(logits, jnp.asarray([1, 0]))
  assert value == pytest.approx((math.log(4) + math.log(2)) / 2, rel=1e-5)


def test_loss_is_the_weighted_sum_and_metrics_are_not_weighted():
  random = np.random.default_rng(0)
  student, teacher = np.float32(random.normal(size=(2, 4, 3)))
  objective = objectives.parse('0.5*ce + 2*kd(temperature=3) + kd')
  student, teacher = view(student), view(teacher)
  params, state = objective.init(jax.random.key(0), student, teacher)
  assert params == state == {'ce': {}, 'kd': {}, 'kd_2': {}}
  labels = jnp.asarray([0, 1, 2, 0])
  available = {'labels': labels, 'mixed': None}
  total, (metrics, new) = objective.loss(
    params, state, student, teacher, available
  )
  expected = {
    'ce': ce.cross_entropy(student.logits, labels),
    'kd': kd.kd_loss(student.logits, teacher.logits, 3.0),
    'kd_2': kd.kd_loss(student.logits, teacher.logits, 4.0),
  }
  assert metrics == expected
  assert new == state
  np.testing.assert_allclose(
    total,
    0.5 * expected['ce'] + 2 * expected['kd'] + expected['kd_2'],
    rtol=1e-6,
  )


def test_without_a_teacher():
  objective = objectives.parse('ce')
  student = view(np.zeros((2, 3), np.float32))
  params, state = objective.init(jax.random.key(0), student, None)
  total, _ = objective.loss(
    params,
    state,
    student,
    None,
    {'labels': jnp.asarray([0, 2]), 'mixed': None},
  )
  assert total == pytest.approx(math.log(3), rel=1e-6)


@dataclasses.dataclass(frozen=True)
class Scaled(method.Method):
  """A method with a trained scale, a counter and a metric of its own."""

  start: float = 2.0
  needs = ('indices', 'step')
  recipe = '3*scaled'
  paper = '-'

  def init(self, rng, student_view, teacher_view):
    return {
      'params': {'scale': jnp.float32(self.start)},
      'state': {'calls': jnp.int32(0)},
    }

  def loss(self, variables, student_view, teacher_view, *, indices, step):
    scale = variables['params']['scale']
    value = scale * jnp.mean(indices * jnp.ones(()))
    calls = variables['state']['calls'] + 1
    return value, {'step': step}, {'calls': calls}


def test_a_further_method_needs_one_line(monkeypatch):
  monkeypatch.setitem(objectives.METHODS, 'scaled', Scaled)
  objective = objectives.parse('scaled + scaled(start=5)')
  student = view(np.zeros((2, 3), np.float32))
  params, state = objective.init(jax.random.key(0), student, student)
  assert params == {'scaled': {'scale': 2}, 'scaled_2': {'scale': 5}}
  available = {'labels': None, 'indices': jnp.asarray([1, 3]), 'step': 7}

  def loss(params):
    return objective.loss(params, state, student, student, available)

  grads, _ = jax.grad(loss, has_aux=True)(params)
  total, (metrics, new) = loss(params)
  assert grads == {'scaled': {'scale': 2}, 'scaled_2': {'scale': 2}}
  assert total == 2 * 2 + 5 * 2
  assert metrics == {
    'scaled': 4,
    'scaled/step': 7,
    'scaled_2': 10,
    'scaled_2/step': 7,
  }
  assert new == {'scaled': {'calls': 1}, 'scaled_2': {'calls': 1}}
