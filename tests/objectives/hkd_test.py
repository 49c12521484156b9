"""HKD against published and hand-made numbers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import hkd
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')

value_and_grad = jax.jit(jax.value_and_grad(hkd.divergence))


def test_published():
  def layers(get, side):
    return [get(f'{side}_feat_{i}') for i in range(3)]

  published.check(
    'hkd__sem_b',
    lambda get: layers(get, 'student'),
    lambda student, case: hkd.hkd_loss(
      student,
      [jnp.asarray(x) for x in layers(case.__getitem__, 'teacher')],
      # Of this code only the first layer has a weight, and it stays.
      [float(case['hp_init_weight']), 1.0, 1.0],
    ),
  )


def test_by_hand():
  # Cosine 0, then 1: rows (2/3, 1/3), then (1/2, 1/2). Distances 1 and 3.
  student = jnp.asarray([[0.6, 0.0], [0.0, 0.8]])
  teacher = jnp.asarray([[1.0, 0.0], [4.0, 0.0]])

  def jeffreys(p, q):
    return (q - p) * math.log(q / p)

  cosine = jeffreys(2 / 3, 1 / 2) + jeffreys(1 / 3, 1 / 2)
  # 1/(1 + 0) to 1/(1 + 1) is 2 to 1; 1 to 1/4 is 4 to 1.
  student_t = jeffreys(2 / 3, 4 / 5) + jeffreys(1 / 3, 1 / 5)
  value = jax.jit(hkd.divergence)(student, teacher)
  # The small constant makes the distance of a point to itself 0.001.
  assert value == pytest.approx((cosine + student_t) / 2, rel=2e-3)


def test_weights_decay_but_for_the_pooled_vector():
  random = np.random.default_rng(0)

  def view(width):
    maps = random.normal(size=(2, 3, 2, 2, width)).astype(np.float32)
    return View(None, tuple(maps), None, maps[1, :, 0, 0])

  student, teacher = view(4), view(5)
  method = hkd.HeterogeneousKnowledgeDistillation(
    initial_weight=8.0, decay=0.5, setting=Setting(blocks=2, trained=(0, 1))
  )
  divergence = jax.jit(hkd.divergence)
  *maps, pooled = (
    float(divergence(a, b))
    for a, b in zip(
      (*student.features, student.pooled), (*teacher.features, teacher.pooled)
    )
  )
  loss = jax.jit(lambda s, t, epoch: method.loss({}, s, t, epoch=epoch)[0])
  for epoch, weight in ((1, 8), (3, 2)):
    value = loss(student, teacher, jnp.float32(epoch))
    assert value == pytest.approx(weight * sum(maps) + pooled, rel=1e-5)


def test_of_the_teacher_with_itself_is_zero():
  x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  value, grad = value_and_grad(x, x)
  assert abs(value) < 1e-10
  np.testing.assert_allclose(grad, 0 * x, atol=1e-6)


def test_zero_equal_opposite_and_large_rows():
  """Of the student; the teacher's are ordinary."""
  teacher = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
  student = np.asarray([[0, 0], [1, 2], [1, 2], [-1, -2], [1e6, 1]], np.float32)
  value, grad = value_and_grad(student, teacher)
  assert np.isfinite(value)
  assert np.isfinite(grad).all()
  assert np.abs(grad).max() < 1e3


def test_bad_decay():
  with pytest.raises(
    UserError, match=r'hkd\.decay = 1\.5: must be above 0 and'
  ):
    hkd.HeterogeneousKnowledgeDistillation(decay=1.5)
