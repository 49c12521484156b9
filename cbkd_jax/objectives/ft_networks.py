"""The networks of factor transfer, as in RepDistiller."""

import jax
from flax import linen as nn

from cbkd_jax.models import layers
from cbkd_jax.objectives.regressors import batch_norm, conv


class Coder(nn.Module):
  """3x3 convolutions with leaky ReLUs, also behind the last.

  Attributes:
    widths: output channels of each.
    use_bn: whether each is normalised.
    transposed: whether they are transposed.
    axis_name: the replicas' axis.
  """

  widths: tuple[int, ...]
  use_bn: bool
  transposed: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    for i, width in enumerate(self.widths, 1):
      if self.transposed:
        x = nn.ConvTranspose(
          width,
          (3, 3),
          padding=1,
          transpose_kernel=True,
          kernel_init=layers.CONV_INIT,
          name=f'conv{i}',
        )(x)
      else:
        x = conv(width, 3, use_bias=True, name=f'conv{i}')(x)
      if self.use_bn:
        x = batch_norm(train, self.axis_name, name=f'norm{i}')(x)
      x = nn.leaky_relu(x, 0.1)
    return x


class Paraphraser(nn.Module):
  """An autoencoder, a map to (its factors, its reconstruction).

  Attributes:
    width: the map's channels.
    code: the factors' channels.
    use_bn: whether its convolutions are normalised.
    axis_name: the replicas' axis.
  """

  width: int
  code: int
  use_bn: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
    wide, code = self.width, self.code
    encoder = Coder(
      (wide, code, code), self.use_bn, axis_name=self.axis_name, name='encoder'
    )
    decoder = Coder(
      (code, wide, wide), self.use_bn, True, self.axis_name, name='decoder'
    )
    factors = encoder(x, train)
    return factors, decoder(factors, train)
