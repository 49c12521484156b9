"""DKD against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import dkd, kd
from cbkd_jax.objectives.ce import cross_entropy
from cbkd_jax.objectives.dkd import DecoupledKnowledgeDistillation

pytestmark = pytest.mark.usefixtures('quick_compilation')


LOSS = jax.jit(dkd.dkd_loss)


def view(logits):
  return View(jnp.asarray(logits), (), (), jnp.zeros(()))


def student(get):
  return get('student_logits')


def loss(s, case, epoch=1.0, **options):
  method = DecoupledKnowledgeDistillation(
    alpha=float(case['hp_alpha']),
    beta=float(case['hp_beta']),
    temperature=float(case['hp_temperature']),
    **options,
  )
  value, metrics, state = method.loss(
    {},
    view(s),
    view(case['teacher_logits']),
    labels=case['labels'],
    epoch=jnp.float32(epoch),
  )
  assert metrics == state == {}
  return value


@pytest.mark.parametrize(
  'name',
  [
    'dkd__md_tckd_only',
    'dkd__md_nckd_only',
    'dkd__md_both_a1_b8_T4',
    'dkd__md_both_T1',
    'ctkd__dkd',
  ],
)
def test_published(name):
  published.check(name, student, lambda s, case: loss(s, case, warmup=0.0))


@pytest.mark.parametrize('name', ['logitstd_dkd__T2', 'logitstd_dkd__T4_f32'])
def test_standardized_published(name):
  published.check(
    name,
    student,
    lambda s, case: loss(s, case, warmup=0.0, standardize=True),
  )


def test_published_with_cross_entropy_and_warm_up():
  published.check(
    'dkd__md_forward_train_epoch40',
    student,
    lambda s, case: (
      cross_entropy(s, case['labels'])
      + loss(s, case, epoch=case['hp_epoch'], warmup=float(case['hp_warmup']))
    ),
  )


def test_warms_up():
  method = DecoupledKnowledgeDistillation()
  views = view([[0.3, 2.0, 1.0]]), view([[0.0, 1.0, 5.0]])
  run = jax.jit(
    lambda e: method.loss({}, *views, labels=jnp.asarray([1]), epoch=e)[0]
  )
  early, late = (float(run(jnp.float32(e))) for e in (5, 25))
  assert early == pytest.approx(late / 4)


def test_by_hand():
  # Teacher (1/2, 1/4, 1/4), student (1/4, 1/4, 1/2), label 0.
  teacher = jnp.log(jnp.asarray([[2.0, 1.0, 1.0]]))
  student = jnp.log(jnp.asarray([[1.0, 1.0, 2.0]]))
  tckd = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
  nckd = 0.5 * math.log(3 / 2) + 0.5 * math.log(3 / 4)
  value = LOSS(student, teacher, jnp.asarray([0]), 3.0, 5.0, 1.0)
  assert value == pytest.approx(3 * tckd + 5 * nckd, rel=1e-5)


def test_adds_up_to_kd():
  """Equation 7 of the paper: KD = TCKD + (1 - q_target) NCKD."""
  rng = np.random.default_rng(0)
  s, t = jnp.asarray(3 * rng.normal(size=(2, 1, 6)), jnp.float32)
  label = jnp.asarray([2])
  tckd = LOSS(s, t, label, 1.0, 0.0, 4.0)
  nckd = LOSS(s, t, label, 0.0, 1.0, 4.0)
  rest = 1 - jax.nn.softmax(t / 4.0)[0, 2]
  expected = float(kd.kd_loss(s, t, 4.0))
  assert tckd + rest * nckd == pytest.approx(expected, rel=1e-4)


EXTREMES = (
  # The reference underflows here: probabilities of the target and of the rest
  # that are 0 in float32.
  [[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [-1e4, 1e4, 0.0], [5.0, 5.0, 5.0]],
  [[-1e4, 1e4, 0.0], [1e4, 0.0, -1e4], [-1e4, 1e4, 0.0], [0.0, 0.0, 0.0]],
)


def test_finite_at_extremes():
  s, t = map(jnp.asarray, EXTREMES)
  labels = jnp.asarray([0, 0, 1, 2])
  run = jax.jit(jax.value_and_grad(dkd.dkd_loss))
  value, grad = run(s, t, labels, 1.0, 8.0, 1.0)
  assert np.isfinite(value)
  assert value > 1e4
  assert np.isfinite(grad).all()
  value, grad = run(s, s, labels, 1.0, 8.0, 1.0)
  assert value == 0
  np.testing.assert_allclose(grad, np.zeros((4, 3)), atol=1e-6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'beta': -1.0}, r'^dkd\.beta = -1\.0: must be at least 0$'),
    ({'temperature': 0.0}, r'^dkd\.temperature = 0\.0: must be above 0$'),
    ({'warmup': -2.0}, r'^dkd\.warmup = -2\.0: must be at least 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    DecoupledKnowledgeDistillation(**options)
