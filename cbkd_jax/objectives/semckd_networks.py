"""The networks of semantic calibration."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.models import layers
from cbkd_jax.objectives.regressors import batch_norm, conv


class Embedding(nn.Module):
  """Of rows of similarities: dense - ReLU - dense, at norm 1.

  Attributes:
    width: of the embeddings, half of the inner one.
  """

  width: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = layers.DENSE_INIT
    x = nn.relu(nn.Dense(2 * self.width, kernel_init=init, name='dense1')(x))
    x = nn.Dense(self.width, kernel_init=init, name='dense2')(x)
    squared = jnp.sum(x * x, axis=-1, keepdims=True)
    # Not zero at 0, as that of `l2_normalize`: dead units are to come alive.
    return x / jnp.sqrt(jnp.where(squared > 1e-24, squared, 1.0))


class Projection(nn.Module):
  """1x1 - 3x3 - 1x1 convolutions, the first two normalised, with ReLU.

  Attributes:
    width: the teacher's channels, half of the inner ones.
    axis_name: the replicas' axis.
  """

  width: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for i, kernel in enumerate((1, 3), 1):
      x = conv(2 * self.width, kernel, name=f'conv{i}')(x)
      x = nn.relu(batch_norm(train, self.axis_name, name=f'norm{i}')(x))
    return conv(self.width, name='conv3')(x)
