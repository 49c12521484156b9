"""RKD: distances and angles between examples are as with the teacher.

Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019
(arXiv:1904.05068), section 3.2. Where two examples coincide for the student
but not for the teacher, the angles there have gradient 0; the published
code's is 1e12 times too large.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import flatten, l2_normalize
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.relations import squared_distances, without_diagonal

_SMALLEST = 1e-12  # Squared distance.


def relative_distances(x: jax.Array, squared: bool) -> jax.Array:
  """Distances of all pairs, divided by the mean of those off the diagonal.

  Args:
    x: `[batch, features]`.
    squared: squared distances in place of distances.

  Returns:
    `[batch, batch]`.
  """
  distances = squared_distances(x, _SMALLEST)
  if not squared:
    distances = jnp.sqrt(distances)
  distances = without_diagonal(distances)
  batch = x.shape[0]
  if batch == 1:
    return distances
  return distances / (jnp.sum(distances) / (batch * (batch - 1)))


def angles(x: jax.Array) -> jax.Array:
  """Cosines of the angles in all triples of examples.

  Args:
    x: `[batch, features]`.

  Returns:
    `[batch, batch, batch]`, at (i, j, k) that of the angle j-i-k; 0 where i is
    j or k, or coincides with it.
  """
  edges = l2_normalize(x[None] - x[:, None])
  return jnp.einsum('ijf,ikf->ijk', edges, edges, precision='highest')


def rkd_loss(
  student: jax.Array,
  teacher: jax.Array,
  distance: float,
  angle: float,
  squared: bool = False,
) -> jax.Array:
  """Smooth L1 of relative distances and of angles, weighted.

  Memory grows with batch^3, and with batch^2 * features.

  Args:
    student: features `[batch, ...]`.
    teacher: likewise, a constant.
    distance: weight of the distances' mean over all batch^2 pairs.
    angle: weight of the angles' mean over all batch^3 triples.
    squared: squared distances in place of distances.

  Returns:
    A scalar.
  """
  student, teacher = flatten(student), flatten(jax.lax.stop_gradient(teacher))
  total = jnp.zeros((), student.dtype)
  if distance:
    ours, theirs = (relative_distances(x, squared) for x in (student, teacher))
    total += distance * jnp.mean(optax.huber_loss(ours, theirs, delta=1.0))
  if angle:
    ours, theirs = angles(student), angles(teacher)
    total += angle * jnp.mean(optax.huber_loss(ours, theirs, delta=1.0))
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelationalKnowledgeDistillation(Looking, BatchWise):
  """`rkd(distance=25, angle=50)`, on the pooled vector.

  The weights are RepDistiller's. `squared=True` takes squared distances.
  """

  distance: float = 25.0
  angle: float = 50.0
  squared: bool = False
  at: str | int | tuple = 'pooled'

  name: ClassVar[str] = 'rkd'
  paper: ClassVar[str] = (
    'Park et al., Relational Knowledge Distillation, CVPR 2019'
  )
  recipe: ClassVar[str] = 'ce + rkd(distance=25, angle=50)'
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 3
  may_pool: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('distance', 'angle')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    pairs = zip(self.look(student_view), self.look(teacher_view))
    value = sum(
      rkd_loss(ours, theirs, self.distance, self.angle, self.squared)
      for ours, theirs in pairs
    )
    return value, {}, {}
