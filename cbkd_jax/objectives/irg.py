"""IRG: graphs of examples, and how they change across layers.

Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR
2019. Numbers as in SemCKD's code: a graph's edges are squared distances over
the largest of them, its vertices the features. The transform term follows the
change from each chosen block to the next one chosen; the authors' own pairs
are the first and last unit of every ResNet group, and SemCKD's script, whose
weights the recipe has, chooses none (`transform=0`).
"""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.maps import flatten
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.objectives.places import Consecutive
from cbkd_jax.objectives.relations import squared_distances, without_diagonal

_EPSILON = 1e-12


def edges(x: jax.Array) -> jax.Array:
  """Squared distances between examples, over the largest of them.

  Args:
    x: features `[batch, ...]`.

  Returns:
    `[batch, batch]`, at most 1.
  """
  distances = without_diagonal(squared_distances(flatten(x), _EPSILON))
  return distances / (jnp.max(distances) + _EPSILON)


def graph_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference of edges, and of vertices if of equal shape.

  Args:
    student: features `[batch, ...]`.
    teacher: likewise, a constant.

  Returns:
    A scalar.
  """
  teacher = jax.lax.stop_gradient(teacher)
  value = _mean_square(edges(student), edges(teacher))
  if student.shape == teacher.shape:
    value += _mean_square(student, teacher)
  return value


def transform_loss(
  student: tuple[jax.Array, jax.Array], teacher: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Squared difference of the sizes of the two networks' changes.

  The change of the edges, and, if each network's two maps are of equal shape,
  that of the vertices; a size is a mean squared difference.

  Args:
    student: features `[batch, ...]` at two blocks.
    teacher: likewise, constants.

  Returns:
    A scalar.
  """
  pairs = student, jax.lax.stop_gradient(teacher)
  ours, theirs = (_mean_square(edges(a), edges(b)) for a, b in pairs)
  value = (ours - theirs) ** 2
  if all(a.shape == b.shape for a, b in pairs):
    ours, theirs = (_mean_square(a, b) for a, b in pairs)
    value += (ours - theirs) ** 2
  return value


def _mean_square(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.mean((a - b) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class InstanceRelationshipGraph(Consecutive, BatchWise):
  """`irg(graph=1, transform=1)`.

  The graph is that of the pooled vectors; the transformations are those
  between consecutive blocks among those at `at`.
  """

  graph: float = 1.0
  transform: float = 1.0

  name: ClassVar[str] = 'irg'
  paper: ClassVar[str] = (
    'Liu et al., Knowledge Distillation via Instance Relationship Graph, '
    'CVPR 2019'
  )
  recipe: ClassVar[str] = (
    'ce + kd(temperature=4) + 0.005*irg(graph=1, transform=1)'
  )
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 3

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('graph', 'transform')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    if self.transform and len(self.places) < 2:
      raise UserError(
        f'{self.name}.at = {self.at!r}: a transformation leads from one block '
        f'to another, and in {self.setting.name} this is one block; name two, '
        f'or set {self.name}.transform = 0'
      )
    return {}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    value = self.graph * graph_loss(student_view.pooled, teacher_view.pooled)
    if self.transform:
      maps = self.look(student_view), self.look(teacher_view)
      changes = zip(*map(itertools.pairwise, maps), strict=True)
      value += self.transform * sum(transform_loss(*pair) for pair in changes)
    return value, {}, {}
