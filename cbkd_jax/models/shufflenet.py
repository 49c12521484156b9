"""ShuffleNet for CIFAR (Zhang et al., 2018): stem and groups in four blocks.

As the distillation literature has it (RepDistiller): a 1x1 stem without stride,
so that at 32 pixels cuts have 32, 16, 8 and 4; convolutions in three groups; a
ReLU after the depthwise convolution too. Every group begins with a strided unit
that concatenates its pooled input instead of adding it.

Which of the grouped and shuffled channels belong together is more than `wiring`
can say: student blocks start at random, or with fitted adapters ('pca').
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers

UNITS = (1, 4, 8, 4)
_WIDTHS = (24, 240, 480, 960)
_GROUPS = 3


def shuffle(x: Array, groups: int) -> Array:
  """Channels that lay in `groups` rows, one after another, column by column."""
  rows = x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups)
  return rows.swapaxes(-1, -2).reshape(x.shape)


def _divisor(*widths: int) -> int:
  """Groups of a convolution: one where channels can't be divided by three."""
  return 1 if any(width % _GROUPS for width in widths) else _GROUPS


class GroupedUnit(nn.Module):
  """1x1 in groups, shuffle, depthwise 3x3, 1x1 in groups; no last ReLU.

  Attributes:
    width: output channels; a strided unit's own are those that its input,
      pooled, leaves.
    stride: 2 concatenates [own, pooled input], 1 adds.
    grouped_input: whether the first convolution has groups too.
    dtype: the compute dtype.
    axis_name: see `layers.batch_norm`.
  """

  width: int
  stride: int
  grouped_input: bool
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    width = self.width - (x.shape[-1] if self.stride == 2 else 0)
    if width < 4:
      raise UserError(
        f'ShuffleV1: a group of {self.width} channels for an input of '
        f'{x.shape[-1]}, which its first unit passes on; at least 4 more are '
        'needed'
      )
    mid = width // 4
    groups = _divisor(x.shape[-1], mid) if self.grouped_input else 1
    y = conv(mid, 1, groups=groups, name='conv1')(x)
    y = shuffle(nn.relu(norm(name='norm1')(y)), groups)
    y = conv(mid, 3, self.stride, groups=mid, name='conv2')(y)
    y = nn.relu(norm(name='norm2')(y))
    y = conv(width, 1, groups=_divisor(mid, width), name='conv3')(y)
    y = norm(name='norm3')(y)
    if self.stride == 1:
      return x + y
    # The padding counts in the mean, as in the published code.
    pooled = nn.avg_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return jnp.concatenate([y, pooled], axis=-1)


class StemBlock(nn.Module):
  """1x1 convolution, normalisation and ReLU."""

  width: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    x = layers.conv(self.width, 1, dtype=self.dtype, name='conv')(x)
    x = layers.batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)
    features = nn.relu(x)
    return BlockOutput(features, x, features)


class GroupedBlock(nn.Module):
  """A group of units."""

  width: int
  units: int
  grouped_input: bool
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> tuple[Array, Array]:
        pre_activation = GroupedUnit(
          self.width,
          2 if n == 0 else 1,
          self.grouped_input or n > 0,
          self.dtype,
          self.axis_name,
          name=f'unit_{n}',
        )(x, train)
        return layers.materialise(nn.relu(pre_activation)), pre_activation

      x, pre_activation = layers.unit(unit)(self, x)
    return BlockOutput(x, pre_activation, x)


def torch_name(part: int, path: str) -> str:
  """RepDistiller's name, which is mdistiller's too; of V2 as well."""
  if path == 'classifier':
    return 'linear'
  *module, layer = path.replace('norm', 'bn').split('/')
  if module in ([], ['last']):  # V2 has layers in its head, too.
    return layer + ('2' if module else '1')
  return f'layer{part}.{module[0].removeprefix("unit_")}.{layer}'


def _shuffle_v1(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
) -> Architecture:
  del image_shape  # The same network at every size.

  def block(index: int, width: int, units: int) -> nn.Module:
    if index == 0:
      return StemBlock(width, dtype, axis_name)
    # The stem's channels are too few for groups.
    return GroupedBlock(width, units, index > 1, dtype, axis_name)

  return Architecture(
    widths=_WIDTHS,
    units=UNITS,
    block=block,
    head=lambda: layers.PoolingHead(num_classes),
    # A quarter of a width has groups.
    width_step=4 * _GROUPS,
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm3' if i else 'norm'),
    torch_names={'repdistiller': torch_name},
  )


MODELS = {'ShuffleV1': _shuffle_v1}
