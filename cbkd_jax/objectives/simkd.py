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

from cbkd_jax.blocks import HeadOutput, View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.regressors import (
  apply_module,
  batch_norm,
  conv,
  init_module,
)


class Projector(nn.Module):
  """1x1 - 3x3 - 1x1 convolutions, each normalised and with a ReLU.

  Attributes:
    width: the teacher's channels.
    factor: the inner width is width // factor.
    axis_name: the replicas' axis.
  """

  width: int
  factor: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    mid = self.width // self.factor
    for i, (width, kernel) in enumerate(
      ((mid, 1), (mid, 3), (self.width, 1)), 1
    ):
      x = conv(width, kernel, name=f'conv{i}')(x)
      x = nn.relu(batch_norm(train, self.axis_name, name=f'norm{i}')(x))
    return x


class ProjectedHead(nn.Module):
  """A student's head: a projector and the teacher's frozen head behind it.

  `train` is the projector's; the teacher's head always runs in eval mode.
  """

  projector: nn.Module
  head: nn.Module

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> HeadOutput:
    out = self.head(self.projector(x, train), train=False)
    # It is not the student's own map that the teacher's head normalised.
    return out._replace(normalized_input=None)


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
    (height, width), (least_height, least_width) = (
      x.shape[1:3] for x in (ours, theirs)
    )
    if height > least_height or width > least_width:
      # The loss could pool it. The head that predicts sees no teacher.
      raise UserError(
        f"{self.name}: the student's deepest map is {height}x{width}, larger "
        f"than the teacher's {least_height}x{least_width}"
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
    """
    return ProjectedHead(self._projector(width), head)

  def head_variables(
    self, variables: dict[str, Any], teacher_head: tuple[Any, Any]
  ) -> tuple[Any, Any]:
    """(params, batch_stats) of `student_head`.

    Args:
      variables: the method's.
      teacher_head: (params, batch_stats) of the teacher's head.
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

    def shapes(tree):
      return jax.tree.map(lambda x: x.shape, tree)

    return previous if shapes(previous) == shapes(variables) else variables

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
