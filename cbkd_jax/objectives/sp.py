"""SP: which examples of a batch activate alike is as with the teacher.

Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019
(arXiv:1907.09682), section 3. An all-zero row has gradient 0 here; the
published code's is 1e12 times too large there.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import flatten, l2_normalize
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.relations import gram


def similarity(x: jax.Array) -> jax.Array:
  """Inner products of all pairs of examples, each row at norm 1.

  Args:
    x: features `[batch, ...]`.

  Returns:
    `[batch, batch]`.
  """
  return l2_normalize(gram(flatten(x)))


def sp_loss(
  student: Sequence[jax.Array], teacher: Sequence[jax.Array]
) -> jax.Array:
  """Sum over layers of the mean squared difference of similarity matrices.

  Args:
    student: features `[batch, ...]`.
    teacher: as many; of each pair only the batches must agree.

  Returns:
    A scalar.
  """
  return sum(
    jnp.mean((similarity(ours) - similarity(theirs)) ** 2)
    for ours, theirs in zip(student, teacher, strict=True)
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityPreserving(Looking, BatchWise):
  """`sp()`, on the deepest map; RepDistiller's weight is 3000."""

  at: str | int | tuple = 'last'

  name: ClassVar[str] = 'sp'
  paper: ClassVar[str] = (
    'Tung & Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019'
  )
  recipe: ClassVar[str] = 'ce + 3000*sp'
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 2
  may_pool: ClassVar[bool] = True

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    return sp_loss(self.look(student_view), self.look(teacher_view)), {}, {}
