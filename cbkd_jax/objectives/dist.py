"""DIST: predictions correlate with the teacher's, by example and by class.

Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher",
NeurIPS 2022 (arXiv:2205.10536).
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import BatchWise


def pearson(one: jax.Array, two: jax.Array, axis: int) -> jax.Array:
  """Pearson's correlation along an axis of two matrices.

  A constant vector's is 0, with a gradient of 0.

  Args:
    one: `[rows, columns]`.
    two: likewise.
    axis: the vectors'.

  Returns:
    One number per row (axis 1) or column (axis 0).
  """
  one, two = (x - jnp.mean(x, axis=axis, keepdims=True) for x in (one, two))
  norms = _norm(one, axis) * _norm(two, axis)
  return jnp.sum(one * two, axis=axis) / (norms + 1e-8)


def _norm(x: jax.Array, axis: int) -> jax.Array:
  squared = jnp.sum(x * x, axis=axis)
  # Guarded inside the root: its derivative at 0 is infinite.
  usable = squared > jnp.finfo(x.dtype).tiny
  return jnp.where(usable, jnp.sqrt(jnp.where(usable, squared, 1.0)), 0.0)


def dist_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  beta: float,
  gamma: float,
  temperature: float = 1.0,
) -> jax.Array:
  """T^2 (beta (1 - correlation of rows) + gamma (1 - that of columns)).

  The correlations are those of the probabilities at T, averaged.

  Args:
    student_logits: `[batch, classes]`; of dense predictions every pixel is a
      row.
    teacher_logits: likewise.
    beta: weight of the relation between classes (rows).
    gamma: weight of the relation between examples (columns).
    temperature: T > 0; the segmentation code has none, T = 1.

  Returns:
    A scalar.
  """
  probabilities = [
    jax.nn.softmax(x / temperature) for x in (student_logits, teacher_logits)
  ]
  inter, intra = (
    1 - jnp.mean(pearson(*probabilities, axis)) for axis in (1, 0)
  )
  return temperature**2 * (beta * inter + gamma * intra)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrongTeacherDistillation(BatchWise):
  """`dist(beta=1.0, gamma=1.0, temperature=1.0)`.

  The recipe is that of the paper's code on CIFAR-100, which writes it as
  beta = gamma = 1 at temperature 4 with a loss weight of 2; on ImageNet it
  has the same weight at temperature 1.
  """

  beta: float = 1.0
  gamma: float = 1.0
  temperature: float = 1.0

  name: ClassVar[str] = 'dist'
  paper: ClassVar[str] = (
    'Huang et al., Knowledge Distillation from A Stronger Teacher, NeurIPS 2022'
  )
  recipe: ClassVar[str] = 'ce + dist(beta=2, gamma=2, temperature=4)'
  knowledge: ClassVar[str] = 'relation'

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('beta', 'gamma')
    self.require_positive('temperature')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits = student_view.logits, teacher_view.logits
    return dist_loss(*logits, self.beta, self.gamma, self.temperature), {}, {}
