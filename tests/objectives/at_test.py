"""AT against published and hand-made numbers."""

import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.objectives import at

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.mark.parametrize(
  ('name', 'layers'),
  [
    ('at__rep_p2_mixed_sizes', 3),
    ('at__rep_p2_nondivisible_pool', 2),
    ('at__rep_p4', 1),
  ],
)
def test_published(name, layers):
  def build(get):
    return [published.feature(get(f'student_feat_{i}')) for i in range(layers)]

  def loss(student, case):
    teacher = [
      published.feature(case[f'teacher_feat_{i}']) for i in range(layers)
    ]
    return at.at_loss(student, teacher, int(case['hp_p']))

  published.check(name, build, loss)


def test_the_same_map_up_to_a_factor_is_zero():
  x = np.random.default_rng(0).normal(size=(2, 3, 3, 4)).astype(np.float32)
  assert at.at_loss([jnp.asarray(x)], [jnp.asarray(3 * x)]) < 1e-12


def test_by_hand():
  # Attention (3, 4)/5 against (1, 0), mean over two positions.
  student = jnp.asarray([3.0, 4.0]).reshape(1, 1, 2, 1) ** 0.5
  teacher = jnp.asarray([2.0, 0.0]).reshape(1, 1, 2, 1)
  value = at.at_loss([student], [teacher])
  assert value == pytest.approx((0.4**2 + 0.8**2) / 2, rel=1e-6)
