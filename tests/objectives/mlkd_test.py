"""MLKD against published and hand-made numbers."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import mlkd
from cbkd_jax.objectives.mlkd import MultiLevelDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(logits):
  return View(jnp.asarray(logits), (), (), jnp.zeros(()))


@pytest.mark.parametrize(
  ('name', 'loss'),
  [('mlkd__cc_loss', mlkd.class_loss), ('mlkd__bc_loss', mlkd.batch_loss)],
)
def test_published_relations(name, loss):
  published.check(
    name,
    lambda get: get('student_logits'),
    lambda s, case: loss(
      s, case['teacher_logits'], float(case['hp_temperature'])
    ),
  )


def whole(students, case):
  method = MultiLevelDistillation(
    temperature=float(case['hp_temperature']),
    ce_weight=float(case['hp_ce_weight']),
    kd_weight=float(case['hp_kd_weight']),
    standardize=bool(case['hp_logit_stand']),
  )
  weak, strong = map(view, students)
  value, metrics, state = method.loss(
    {},
    weak,
    view(case['teacher_logits_weak']),
    labels=case['labels'],
    second_view=(strong, view(case['teacher_logits_strong'])),
  )
  assert state == {}
  return value, metrics


def test_published():
  name = 'mlkd__full_logitstd_True'
  (terms,) = published.check(
    name,
    lambda get: [get('student_logits_weak'), get('student_logits_strong')],
    whole,
  )
  case = golden.load(f'losses/{name}')
  names = {'labels': 'ce', 'examples': 'kd', 'classes': 'cc', 'batch': 'bc'}
  assert terms.keys() == names.keys()
  for ours, theirs in names.items():
    weight = case['hp_ce_weight' if ours == 'labels' else 'hp_kd_weight']
    np.testing.assert_allclose(
      weight * np.asarray(terms[ours]), case[f'aux_loss_{theirs}'], rtol=1e-9
    )


def test_by_hand():
  # Probabilities (1/2, 1/2) against (1, 0), one example.
  s, t = jnp.zeros((1, 2)), jnp.asarray([[100.0, 0.0]])
  # P^T P: all entries 1/4, against 1 at one place.
  assert mlkd.class_loss(s, t, 1.0) == pytest.approx((0.75**2 + 3 / 16) / 2)
  # P P^T: 1/2 against 1.
  assert mlkd.batch_loss(s, t, 1.0) == pytest.approx(0.25)
  shares = [
    mlkd._share_up_to_median(jnp.asarray(x, jnp.float32))
    for x in ([3.0, 1.0, 2.0], [4.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0])
  ]
  np.testing.assert_allclose(shares, [2 / 3, 1 / 2, 1])


def test_relations_count_by_the_share_that_the_teacher_is_unsure_of():
  rng = np.random.default_rng(0)
  s, t = jnp.asarray(3 * rng.normal(size=(2, 3, 4)), jnp.float32)

  @jax.jit
  def run(s, t):
    terms = mlkd.mlkd_terms((s, t), (s, t), 4.0)
    unweighted = [
      sum(loss(s, t, x) for x in (2.0, 3.0, 4.0, 5.0, 6.0))
      for loss in (mlkd.class_loss, mlkd.batch_loss)
    ]
    return [terms['classes'], terms['batch']], unweighted

  weighted, unweighted = map(np.asarray, run(s, t))
  # 2 of 4 classes, 2 of 3 examples.
  np.testing.assert_allclose(weighted / unweighted, [1 / 2, 2 / 3], rtol=1e-5)


@jax.jit
@jax.value_and_grad
def total(s, t):
  """All terms, of plain and of standardised logits, of two pairs of views."""
  found = (
    mlkd.mlkd_terms((s, t), (2 * s, 2 * t), 4.0, use_standardize)
    for use_standardize in (False, True)
  )
  return sum(sum(terms.values()) for terms in found)


def test_of_the_teacher_with_itself_is_zero():
  x = jnp.asarray([[1.0, -2.0, 3.0], [0.5, 0.0, 0.0], [2.0, 1.0, 1.0]])
  value, grad = total(x, x)
  assert value == pytest.approx(0, abs=1e-5)
  np.testing.assert_allclose(grad, np.zeros((3, 3)), atol=1e-5)


def test_finite_at_extremes():
  s = jnp.asarray([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [2.0, 2.0, 2.0]])
  t = jnp.asarray([[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
  value, grad = total(s, t)
  assert value > 1e4
  assert np.isfinite(value)
  assert np.isfinite(grad).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kd_weight': -1.0}, r'^mlkd\.kd_weight = -1\.0: must be at least 0$'),
    ({'temperature': 0.0}, r'^mlkd\.temperature = 0\.0: must be above 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    MultiLevelDistillation(**options)
