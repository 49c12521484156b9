"""FSP: the flow from block to block follows the teacher's.

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization,
Network Minimization and Transfer Learning", CVPR 2017. The mean squared
difference of two FSP matrices, summed over pairs, as in RepDistiller. There,
and in the paper, it trains an initial stage and nothing afterwards; here it is
a term beside the cross-entropy, with the weight in RepDistiller's script.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.places import Consecutive
from cbkd_jax.objectives.regressors import Connected


def fsp_matrix(bottom: jax.Array, top: jax.Array) -> jax.Array:
  """Means over positions of products of two maps' channels.

  Args:
    bottom: `[batch, h, w, c]`.
    top: a deeper map; the larger of the two is pooled to the smaller one.

  Returns:
    `[batch, top channels, bottom channels]`.
  """
  bottom, top = match_sizes(bottom, top)
  positions = bottom.shape[1] * bottom.shape[2]
  return jnp.einsum('bhwj,bhwi->bji', top, bottom) / positions


def fsp_loss(
  student: Sequence[jax.Array], teacher: Sequence[jax.Array]
) -> jax.Array:
  """Sum over consecutive maps of the mean squared difference of matrices.

  Args:
    student: at least two maps `[batch, h, w, c]`, shallowest first.
    teacher: as many, of the same channels each; sizes may differ.

  Returns:
    A scalar.
  """
  total = 0.0
  pairs = map(itertools.pairwise, (student, teacher))
  for ours, theirs in zip(*pairs, strict=True):
    total += jnp.mean((fsp_matrix(*ours) - fsp_matrix(*theirs)) ** 2)
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowOfSolutionProcedure(Consecutive, Connected):
  """`fsp()`, from every block to the next; RepDistiller's weight is 50."""

  name: ClassVar[str] = 'fsp'
  paper: ClassVar[str] = (
    'Yim et al., A Gift from Knowledge Distillation: Fast Optimization, '
    'Network Minimization and Transfer Learning, CVPR 2017'
  )
  recipe: ClassVar[str] = 'ce + 50*fsp()'
  knowledge: ClassVar[str] = 'relation'

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    self.check_places()
    ours, theirs = self.look(student_view), self.look(teacher_view)
    return {'params': self.init_connectors(rng, self.places, ours, theirs)}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    params = variables['params']
    ours = self.connect(params, self.places, self.look(student_view))
    return fsp_loss(ours, self.look(teacher_view)), {}, {}
