"""The attention-based fusion of knowledge review."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.models import layers
from cbkd_jax.objectives.maps import nearest_resize
from cbkd_jax.objectives.regressors import batch_norm, conv


class Fusion(nn.Module):
  """ABF: a student map, merged with what the deeper ones left.

  The result has the width and size of the teacher's map.

  Attributes:
    width: the teacher's channels.
    mid: channels in between, those of the residual.
    size: (height, width) of the teacher's map.
    axis_name: the replicas' axis.
  """

  width: int
  mid: int
  size: tuple[int, int]
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, residual: jax.Array | None, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(what is compared, what is passed on to the next shallower map)."""
    x = conv(self.mid, name='conv1')(x)
    x = batch_norm(train, self.axis_name, name='norm1')(x)
    if residual is not None:
      residual = nearest_resize(residual, x.shape[1:3])
      # Small weights: the networks' own are made for many output channels,
      # and would saturate the sigmoid.
      shares = nn.Conv(
        2, (1, 1), kernel_init=layers.DENSE_INIT, name='attention'
      )(jnp.concatenate([x, residual], axis=-1))
      shares = nn.sigmoid(shares)
      x = x * shares[..., :1] + residual * shares[..., 1:]
    if x.shape[1:3] != self.size:
      x = nearest_resize(x, self.size)
    out = conv(self.width, 3, name='conv2')(x)
    return batch_norm(train, self.axis_name, name='norm2')(out), x
