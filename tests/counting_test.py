"""Costs against arithmetic."""

import jax
import jax.numpy as jnp
import pytest
import tiny

from cbkd_jax import compression, counting, models

pytestmark = pytest.mark.usefixtures('quick_compilation')


def conv(k, a, b, side):
  """2 per multiply-add; the border's zeros count in no honest count."""
  inside = (k * side - (k - 1)) / side if k > 1 else 1  # taps per row
  return 2 * inside**2 * a * b * side**2


def test_per_block_of_a_teacher():
  network = models.build('resnet8', 10, (32, 32, 3)).network()
  costs = counting.per_block(network, (32, 32, 3))
  assert [c['params'] for c in costs] == [
    9 * 3 * 16 + 2 * 9 * 16 * 16 + 6 * 16,
    9 * 16 * 32 + 9 * 32 * 32 + 16 * 32 + 6 * 32,
    9 * 32 * 64 + 9 * 64 * 64 + 32 * 64 + 6 * 64 + 64 * 10 + 10,
  ]
  assert [c['bytes'] for c in costs] == [4 * c['params'] for c in costs]
  expected = [
    conv(3, 3, 16, 32) + 2 * conv(3, 16, 16, 32),
    conv(3, 16, 32, 16) + conv(3, 32, 32, 16) + conv(1, 16, 32, 16),
    conv(3, 32, 64, 8) + conv(3, 64, 64, 8) + conv(1, 32, 64, 8) + 2 * 64 * 10,
  ]
  for cost, flops in zip(costs, expected):
    assert cost['flops_per_example'] == pytest.approx(flops, rel=0.05)


def test_student_in_the_order_of_its_blocks():
  student = tiny.student(tiny.architecture())
  folded = counting.per_block(student.network(jnp.float32, True), (8, 8, 1))
  whole = counting.per_block(student.network(jnp.float32, False), (8, 8, 1))
  # Widths 4, 3, 4 behind reductions to 2 and 3.
  assert [c['params'] for c in folded] == [
    9 * 4 + 3 * 4,
    4 * 2 + 2 + 9 * 2 * 3 + 3 * 3,
    3 * 3 + 3 + 9 * 3 * 4 + 3 * 4 + 4 * 3 + 3,
  ]
  assert whole[0] == folded[0]
  assert whole[1]['params'] - folded[1]['params'] == 3 * 6 + 6
  assert whole[2]['params'] - folded[2]['params'] == (6 - 3) * 3


def test_total():
  costs = [
    {'params': 1, 'flops_per_example': 2.0, 'bytes': 4},
    {'params': 10, 'flops_per_example': 20.0, 'bytes': 40},
  ]
  assert counting.total(costs) == {
    'params': 11,
    'flops_per_example': 22.0,
    'bytes': 44,
  }


def test_tree_bytes():
  tree = {'a': jnp.zeros((3, 5)), 'b': [jnp.zeros(7, jnp.bfloat16)]}
  assert counting.tree_bytes(tree) == 60 + 14


def test_flops_of_a_compressed_student_shrink_with_its_width():
  teacher = models.build('vgg8', 10, (16, 16, 3))
  student = compression.compress(
    teacher, keep=(1, 0.5, 0.5, 0.5, 0.5), depth=(), inherit=1
  )
  ours = counting.per_block(teacher.network(), (16, 16, 3))
  theirs = counting.per_block(student.network(jnp.float32, True), (16, 16, 3))
  assert ours[0] == theirs[0]
  for full, half in zip(ours[1:], theirs[1:]):
    ratio = half['flops_per_example'] / full['flops_per_example']
    assert 0.25 < ratio < 0.33  # a quarter, and the 1x1 map in front


def test_a_backend_that_counts_compiled_programs_only(monkeypatch):
  """As those of GPUs and TPUs: `Lowered.cost_analysis` gives None there."""
  network = models.build('resnet8', 10, (8, 8, 1)).network()
  expected = counting.total(counting.per_block(network, (8, 8, 1)))
  counting._flops.cache_clear()
  monkeypatch.setattr(jax.stages.Lowered, 'cost_analysis', lambda _: None)
  found = counting.total(counting.per_block(network, (8, 8, 1)))
  counting._flops.cache_clear()
  assert found['flops_per_example'] == pytest.approx(
    expected['flops_per_example'], rel=0.1
  )
