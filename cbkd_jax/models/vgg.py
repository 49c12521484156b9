"""VGG with batch normalisation (Simonyan & Zisserman, 2015), five blocks.

Each group of convolutions is a block; as in the distillation literature
(RepDistiller) one global average pooling and one dense layer follow.

A 2x2 max-pooling ends each of the first four groups as long as it leaves at
least 3 pixels a side: all four at 64x64, three at 32x32 and 28x28 (as
published), two at 16x16, one at 8x8.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, Layer
from cbkd_jax.models import layers

_WIDTHS = (64, 128, 256, 512, 512)
_MIN_POOLED_SIDE = 3


class VGGUnit(nn.Module):
  """A convolution with bias and a normalisation; the block adds the ReLU."""

  width: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = layers.conv(self.width, use_bias=True, dtype=self.dtype, name='conv')(x)
    return layers.batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)


class VGGBlock(nn.Module):
  """A group of convolutions; `pool` ends it with a max-pooling."""

  width: int
  units: int
  pool: bool
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> tuple[Array, Array]:
        pre_activation = VGGUnit(
          self.width, self.dtype, self.axis_name, name=f'unit_{n}'
        )(x, train)
        return nn.relu(pre_activation), pre_activation

      x, pre_activation = layers.unit(unit)(self, x)
    output = nn.max_pool(x, (2, 2), (2, 2)) if self.pool else x
    return BlockOutput(x, pre_activation, output)


def _poolings(side: int) -> tuple[bool, ...]:
  """Whether each group ends with a pooling; the fifth never does."""
  found = []
  for _ in range(len(_WIDTHS) - 1):
    found.append(side // 2 >= _MIN_POOLED_SIDE)
    side = side // 2 if found[-1] else side
  return (*found, False)


def _wiring(index: int, units: int) -> tuple[Layer, ...]:
  if index == len(_WIDTHS):
    return layers.POOLING_HEAD_WIRING
  sets = ['input', *(f'unit_{n}' for n in range(units - 1)), 'output']
  found = []
  for n in range(units):
    found.append(Layer(f'unit_{n}/conv', sets[n], sets[n + 1]))
    found.append(Layer(f'unit_{n}/norm', None, sets[n + 1]))
  return tuple(found)


def _torch_name(part: int, path: str) -> str:
  """RepDistiller's name, which is mdistiller's too.

  There a group is a sequence of convolution, norm, ReLU and so on.
  """
  if path == 'classifier':
    return path
  unit, layer = path.split('/')
  position = 3 * int(unit.removeprefix('unit_')) + (layer == 'norm')
  return f'block{part}.{position}'


def _vgg(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  units: Sequence[int],
) -> Architecture:
  poolings = _poolings(min(image_shape[:2]))

  def block(index: int, width: int, units: int) -> VGGBlock:
    return VGGBlock(width, units, poolings[index], dtype, axis_name)

  return Architecture(
    widths=_WIDTHS,
    units=tuple(units),
    block=block,
    head=lambda: layers.PoolingHead(num_classes),
    wiring=_wiring,
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm'),
    torch_names={'repdistiller': _torch_name},
  )


MODELS = {
  name: functools.partial(_vgg, units=units)
  for name, units in {
    'vgg8': (1, 1, 1, 1, 1),
    'vgg11': (1, 1, 2, 2, 2),
    'vgg13': (2, 2, 2, 2, 2),
    'vgg16': (2, 2, 3, 3, 3),
    'vgg19': (2, 2, 4, 4, 4),
  }.items()
}
