"""PKT: an example's neighbours have the teacher's probabilities.

Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge
Transfer", ECCV 2018 (arXiv:1803.10837), section 3, with the cosine kernel. A
row of zeros of the student has gradient 0 here; the published code's is not a
number.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import flatten
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.relations import cosine_similarities, shares

_EPSILON = 1e-7


def neighbours(x: jax.Array) -> jax.Array:
  """The probabilities of an example's neighbours, itself included.

  Args:
    x: features `[batch, ...]`.

  Returns:
    `[batch, batch]`, each row a distribution.
  """
  return shares(cosine_similarities(flatten(x), _EPSILON))


def pkt_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """KL(teacher || student) of neighbour distributions, divided by batch^2.

  Args:
    student: features `[batch, ...]`.
    teacher: likewise.

  Returns:
    A scalar.
  """
  p, q = neighbours(student), neighbours(teacher)
  # Of the ratio: it is near 1, and the difference of two logs less exact.
  return jnp.mean(q * jnp.log((q + _EPSILON) / (p + _EPSILON)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbabilisticKnowledgeTransfer(Looking, BatchWise):
  """`pkt()`, on the pooled vector; RepDistiller's weight is 30000."""

  at: str | int | tuple = 'pooled'

  name: ClassVar[str] = 'pkt'
  paper: ClassVar[str] = (
    'Passalis & Tefas, Learning Deep Representations with Probabilistic '
    'Knowledge Transfer, ECCV 2018'
  )
  recipe: ClassVar[str] = 'ce + 30000*pkt'
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 2
  may_pool: ClassVar[bool] = True

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    pairs = zip(self.look(student_view), self.look(teacher_view))
    return sum(pkt_loss(ours, theirs) for ours, theirs in pairs), {}, {}
