"""ShuffleNet V2 for CIFAR (Ma et al., 2018), in blocks as `shufflenet`.

As the distillation literature has it (RepDistiller), at width 1. The last 1x1
convolution belongs to the head.

A cut lies behind a shuffle, and its pre-activation is in the order of its
features, so that it is these before their last activation. (One half passed a
unit by, activated before.) Published lists of pre-activations are in the order
before the shuffle.

`wiring` can't say which channels belong together: as in `shufflenet`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput
from cbkd_jax.models import layers, shufflenet

_WIDTHS = (24, 116, 232, 464)
_LAST_WIDTH = 1024


class StridedSplitUnit(nn.Module):
  """A group's first: two branches, both of all its input."""

  width: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Returns the two halves, the second before its ReLU."""
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    half, inputs = self.width // 2, x.shape[-1]
    left = conv(inputs, 3, 2, groups=inputs, name='conv1')(x)
    left = conv(half, 1, name='conv2')(norm(name='norm1')(left))
    left = nn.relu(norm(name='norm2')(left))
    right = nn.relu(norm(name='norm3')(conv(half, 1, name='conv3')(x)))
    right = conv(half, 3, 2, groups=half, name='conv4')(right)
    right = conv(half, 1, name='conv5')(norm(name='norm4')(right))
    return left, norm(name='norm5')(right)


class SplitUnit(nn.Module):
  """Any other: half of the channels pass it by."""

  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Returns the two halves, the second before its ReLU."""
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    half = x.shape[-1] // 2
    left, right = x[..., :half], x[..., half:]
    right = nn.relu(norm(name='norm1')(conv(half, 1, name='conv1')(right)))
    right = conv(half, 3, groups=half, name='conv2')(right)
    right = conv(half, 1, name='conv3')(norm(name='norm2')(right))
    return left, norm(name='norm3')(right)


class SplitBlock(nn.Module):
  """A group of units."""

  width: int
  units: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> tuple[Array, Array]:
        settings = {'dtype': self.dtype, 'axis_name': self.axis_name}
        if n == 0:
          module = StridedSplitUnit(self.width, **settings, name='unit_0')
        else:
          module = SplitUnit(**settings, name=f'unit_{n}')
        left, right = module(x, train)
        halves = jnp.concatenate([left, right], axis=-1)
        pre_activation = shufflenet.shuffle(halves, 2)
        # The left half is activated already, which a ReLU leaves alone.
        return layers.materialise(nn.relu(pre_activation)), pre_activation

      x, pre_activation = layers.unit(unit)(self, x)
    return BlockOutput(x, pre_activation, x)


def _shuffle_v2(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
) -> Architecture:
  del image_shape  # The same network at every size.

  def block(index: int, width: int, units: int) -> nn.Module:
    if index == 0:
      return shufflenet.StemBlock(width, dtype, axis_name)
    return SplitBlock(width, units, dtype, axis_name)

  last = layers.ConvNorm(_LAST_WIDTH, 1, dtype=dtype, axis_name=axis_name)
  return Architecture(
    widths=_WIDTHS,
    units=shufflenet.UNITS,
    block=block,
    head=lambda: layers.ConvHead(num_classes, last),
    width_step=2,
    torch_names={'repdistiller': shufflenet.torch_name},
  )


MODELS = {'ShuffleV2': _shuffle_v2}
