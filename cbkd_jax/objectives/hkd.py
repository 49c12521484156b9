"""HKD: the flow of information through the layers is as in the teacher.

Passalis, Tzelepi, Tefas, "Heterogeneous Knowledge Distillation Using
Information Flow Modeling", CVPR 2020 (arXiv:2005.00727). Layers before the
last weigh `initial_weight * decay^k` in epoch k = 0, 1, ..., as in the
authors' code: they matter in the critical first phase of training. (SemCKD's
version weights the first layer alone, never lets it decay, and leaves the
pooled vector out.) The paper trains an auxiliary teacher of the student's
kind first, by `pkt`; here that is a teacher like any other.

Similarities of 0 (opposite features) are finite here; the published code's
loss is infinite there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import flatten
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.relations import (
  cosine_similarities,
  shares,
  squared_distances,
)

_EPSILON = 1e-6
_SMALLEST = 1e-12  # Probability.


def log_neighbours(x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Logarithms of two distributions of each example over all.

  By cosine, and by the student-t kernel 1 / (1 + distance).

  Args:
    x: features `[batch, ...]`.

  Returns:
    Two `[batch, batch]`, the rows the examples'.
  """
  x = flatten(x)
  distances = jnp.sqrt(squared_distances(x) + _EPSILON)
  kernels = cosine_similarities(x, _EPSILON), 1 / (1 + distances)
  return tuple(jnp.log(jnp.maximum(shares(k), _SMALLEST)) for k in kernels)


def divergence(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Jeffreys' divergences, of both kernels, divided by batch^2.

  Args:
    student: features `[batch, ...]`.
    teacher: likewise.

  Returns:
    A scalar.
  """
  total = 0.0
  for log_p, log_q in zip(log_neighbours(student), log_neighbours(teacher)):
    total += jnp.mean((jnp.exp(log_q) - jnp.exp(log_p)) * (log_q - log_p))
  return total


def hkd_loss(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  weights: Sequence[float | jax.Array],
) -> jax.Array:
  """Weighted sum over layers of their divergences.

  Args:
    student: features `[batch, ...]`.
    teacher: as many.
    weights: one for each.

  Returns:
    A scalar.
  """
  return sum(
    weight * divergence(ours, theirs)
    for weight, ours, theirs in zip(weights, student, teacher, strict=True)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeterogeneousKnowledgeDistillation(Looking, BatchWise):
  """`hkd(initial_weight=100, decay=0.7)`.

  The pooled vector has weight 1, the maps at `at` have a decaying one.
  """

  initial_weight: float = 100.0
  decay: float = 0.7

  name: ClassVar[str] = 'hkd'
  paper: ClassVar[str] = (
    'Passalis et al., Heterogeneous Knowledge Distillation Using Information '
    'Flow Modeling, CVPR 2020'
  )
  recipe: ClassVar[str] = (
    'ce + kd(temperature=4) + hkd(initial_weight=100, decay=0.7)'
  )
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 2
  needs: ClassVar[tuple[str, ...]] = ('epoch',)

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('initial_weight')
    if not 0 < self.decay <= 1:
      self.fail('decay', 'above 0 and at most 1')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    epoch: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    weight = self.initial_weight * self.decay ** (epoch - 1)
    student = (*self.look(student_view), student_view.pooled)
    teacher = (*self.look(teacher_view), teacher_view.pooled)
    weights = [weight] * (len(student) - 1) + [1.0]
    return hkd_loss(student, teacher, weights), {}, {}
