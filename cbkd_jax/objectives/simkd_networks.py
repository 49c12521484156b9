"""The projector of SimKD, and the head that its student predicts with."""

import jax
from flax import linen as nn

from cbkd_jax.blocks import HeadOutput
from cbkd_jax.objectives.regressors import batch_norm, conv


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
