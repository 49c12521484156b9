"""FSP: the flow from block to block follows the teacher's.

Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation: Fast Optimization,
Network Minimization and Transfer Learning", CVPR 2017. The mean
squared difference of two FSP matrices, summed over pairs, as in RepDistiller.
There (and in the paper) it trains an initial stage of its own, at weight 50;
here it is a term beside the cross-entropy.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import Connected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consecutive(Looking):
  """A method that relates each block to the one before it among its places.

  Of the constant blocks the last one alone counts, as the partner of the
  first that the phase can change.
  """

  whole: ClassVar[bool] = True

  @property
  def places(self) -> tuple[int, ...]:
    found = super().places
    first = min(self.setting.trained)
    constant = sum(i < first for i in found)
    return found[max(constant - 1, 0) :]

  def check_places(self) -> None:
    """Refuses a single place.

    Raises:
      UserError: there is no pair of blocks.
    """
    if len(self.places) < 2:
      raise UserError(
        f'{self.name}.at = {self.at!r}: {self.name} relates a block to an '
        f'earlier one, and this is block {self.places[0]} alone'
      )


def fsp_matrix(bottom: jax.Array, top: jax.Array) -> jax.Array:
  """`[batch, top channels, bottom channels]`: means of products over positions.

  Args:
    bottom: `[batch, h, w, c]`.
    top: a deeper map; the larger of the two is pooled to the smaller one.
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
  """`fsp()`, between every block that can change and the one before it."""

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
