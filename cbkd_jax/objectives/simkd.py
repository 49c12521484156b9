"""SimKD: the student takes the teacher's classifier and learns its features.

Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused
Teacher Classifier", CVPR 2022 (arXiv:2203.14001). The loss is the mean squared
difference of the deepest maps; the student's goes through a projector, which
stays in the student, and so does the teacher's head.

The projector ends with a ReLU. Where the teacher's map has negative entries
(wide ResNets, whose last normalisation is in the head) it can't reach them.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.regressors import (
  apply_module,
  init_module,
  same_shapes,
)
from cbkd_jax.objectives.simkd_networks import ProjectedHead, Projector


def simkd_loss(projected: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference.

  Args:
    projected: the projected student map `[batch, h, w, c]`.
    teacher: the teacher's map, of the same shape.

  Returns:
    A scalar.
  """
  return jnp.mean((projected - teacher) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReusedClassifier(Learned):
  """`simkd(factor=2)`, published as the only loss.

  The student predicts with the teacher's head behind the projector: whatever
  other terms say of its logits, they say of these.
  """

  factor: int = 2

  name: ClassVar[str] = 'simkd'
  paper: ClassVar[str] = (
    'Chen et al., Knowledge Distillation with the Reused Teacher Classifier, '
    'CVPR 2022'
  )
  recipe: ClassVar[str] = '1*simkd()'
  knowledge: ClassVar[str] = 'feature'
  predicts: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('factor')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    ours, theirs = student_view.features[-1], teacher_view.features[-1]
    size, limit = ours.shape[1:3], theirs.shape[1:3]
    if size[0] > limit[0] or size[1] > limit[1]:
      # The loss could pool it. The head that predicts sees no teacher.
      raise UserError(
        f"{self.name}: the student's deepest map is {size[0]}x{size[1]}, "
        f"larger than the teacher's {limit[0]}x{limit[1]}"
      )
    channels = theirs.shape[-1]
    if self.factor > channels:
      self.fail('factor', f"at most {channels}, the teacher's channels")
    params, stats = init_module(
      self._projector(channels), rng, ours, train=False
    )
    return {'params': {'projector': params}, 'state': {'projector': stats}}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    ours, theirs = match_sizes(
      student_view.features[-1], teacher_view.features[-1]
    )
    projected, stats = self._project(variables, ours)
    return simkd_loss(projected, theirs), {}, {'projector': stats}

  def predict(
    self, variables: dict[str, Any], student_view: View, teacher_head: Any
  ) -> jax.Array:
    """The student's logits while it trains, by the batch's statistics.

    Args:
      variables: the method's.
      student_view: the student's outputs; its map is no larger than the
        teacher's.
      teacher_head: map -> HeadOutput; frozen, eval mode.

    Returns:
      `[batch, classes]`.
    """
    projected, _ = self._project(variables, student_view.features[-1])
    return teacher_head(projected).logits

  def student_head(self, head: nn.Module, width: int) -> nn.Module:
    """The head of the student that predicts, see `head_variables`.

    Args:
      head: the teacher's.
      width: the teacher's deepest channels.

    Returns:
      A module, map `[batch, h, w, c]` -> HeadOutput.
    """
    return ProjectedHead(self._projector(width), head)

  def head_variables(
    self, variables: dict[str, Any], teacher_head: tuple[Any, Any]
  ) -> tuple[Any, Any]:
    """The variables of `student_head`.

    Args:
      variables: the method's.
      teacher_head: (params, batch_stats) of the teacher's head.

    Returns:
      (params, batch_stats).
    """
    params, stats = teacher_head
    return (
      {**variables['params'], 'head': params},
      {**variables['state'], **({'head': stats} if stats else {})},
    )

  def adopt(
    self, variables: dict[str, Any], previous: dict[str, Any]
  ) -> dict[str, Any]:
    """The projector is a part of the student and goes on with it."""
    return previous if same_shapes(previous, variables) else variables

  def _projector(self, width: int) -> Projector:
    return Projector(width, self.factor, self.setting.axis_name)

  def _project(
    self, variables: dict[str, Any], x: jax.Array
  ) -> tuple[jax.Array, Any]:
    params = variables['params']['projector']
    return apply_module(
      self._projector(params['conv3']['kernel'].shape[-1]),
      params,
      variables['state']['projector'],
      x,
      train=True,
    )
