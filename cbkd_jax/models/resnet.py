"""CIFAR ResNets (He et al., 2016, section 4.2), three groups in three blocks.

As in the distillation literature (RepDistiller), the shortcut is a projection
wherever the shape changes, and `x4` widens all groups fourfold, the stem
twofold.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, Layer
from cbkd_jax.models import layers


class Stem(nn.Module):
  """Convolution, normalisation, ReLU and, if asked, a 3x3 max-pooling."""

  width: int
  kernel: int = 3
  stride: int = 1
  pool: bool = False
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = layers.conv(
      self.width, self.kernel, self.stride, dtype=self.dtype, name='conv'
    )(x)
    x = layers.batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)
    x = nn.relu(x)
    if self.pool:
      x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return x


class ResidualUnit(nn.Module):
  """Convolutions of `kernels`, and a shortcut; returns their sum, no ReLU.

  Attributes:
    width: output channels.
    stride: of the first convolution whose kernel is larger than 1.
    kernels: `(3, 3)` is the basic unit, `(1, 3, 1)` the bottleneck.
    dtype: the compute dtype.
    axis_name: see `layers.batch_norm`.
  """

  width: int
  stride: int
  kernels: tuple[int, ...] = (3, 3)
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    strided = next(i for i, kernel in enumerate(self.kernels) if kernel > 1)
    last = len(self.kernels) - 1
    # A bottleneck's inner width is a quarter of its output's.
    mid = self.width if last == 1 else self.width // 4
    y = x
    for i, kernel in enumerate(self.kernels):
      width = self.width if i == last else mid
      stride = self.stride if i == strided else 1
      y = conv(width, kernel, stride, name=f'conv{i + 1}')(y)
      y = norm(name=f'norm{i + 1}')(y)
      if i < last:
        y = nn.relu(y)
    if self.stride != 1 or x.shape[-1] != self.width:
      x = conv(self.width, 1, self.stride, name='shortcut')(x)
      x = norm(name='shortcut_norm')(x)
    return x + y


class ResidualBlock(nn.Module):
  """One group of residual units, the shallowest block's behind a stem."""

  width: int
  units: int
  stride: int
  kernels: tuple[int, ...] = (3, 3)
  stem: nn.Module | None = None
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    if self.stem is not None:
      x = self.stem(x, train)
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> tuple[Array, Array]:
        pre_activation = ResidualUnit(
          self.width,
          self.stride if n == 0 else 1,
          self.kernels,
          self.dtype,
          self.axis_name,
          name=f'unit_{n}',
        )(x, train)
        return layers.materialise(nn.relu(pre_activation)), pre_activation

      x, pre_activation = layers.unit(unit)(self, x)
    return BlockOutput(x, pre_activation, x)


def torch_name(part: int, path: str) -> str:
  """The name that torchvision, timm, RepDistiller and mdistiller all use."""
  if path == 'classifier':
    return 'fc'
  module, layer = path.split('/')
  if module == 'stem':
    return {'conv': 'conv1', 'norm': 'bn1'}[layer]
  shortcut = {'shortcut': 'downsample.0', 'shortcut_norm': 'downsample.1'}
  layer = shortcut.get(layer, layer.replace('norm', 'bn'))
  return f'layer{part + 1}.{module.removeprefix("unit_")}.{layer}'


def architecture(
  stem: Stem,
  widths: Sequence[int],
  units: Sequence[int],
  kernels: tuple[int, ...],
  num_classes: int,
  torch_names: Mapping[str, Callable[[int, str], str]],
) -> Architecture:
  """A ResNet: `stem` and one group per block, all but the first strided."""

  def block(index: int, width: int, units: int) -> ResidualBlock:
    return ResidualBlock(
      width,
      units,
      1 if index == 0 else 2,
      kernels,
      stem if index == 0 else None,
      stem.dtype,
      stem.axis_name,
    )

  def wiring(index: int, units: int) -> tuple[Layer, ...]:
    if index == len(widths):
      return layers.POOLING_HEAD_WIRING
    return _wiring(index, units, len(kernels), stem.width != widths[0])

  return Architecture(
    widths=tuple(widths),
    units=tuple(units),
    block=block,
    head=lambda: layers.PoolingHead(num_classes),
    width_step=1 if len(kernels) == 2 else 4,
    wiring=wiring,
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm{len(kernels)}'),
    torch_names=torch_names,
  )


def _wiring(
  index: int, units: int, convs: int, stem_is_projected: bool
) -> tuple[Layer, ...]:
  """The layers of block `index`; all units add to the set 'output'."""
  found = []
  source, projected = 'input', True
  if index == 0:
    # Without a projection the stem's channels are those that the units add to.
    source = 'stem' if stem_is_projected else 'output'
    projected = stem_is_projected
    found.append(Layer('stem/conv', 'input', source))
    found.append(Layer('stem/norm', None, source))
  for n in range(units):
    mids = [f'unit_{n}.mid{i}' for i in range(1, convs)]
    sets = [source, *mids, 'output']
    for i in range(1, convs + 1):
      found.append(Layer(f'unit_{n}/conv{i}', sets[i - 1], sets[i]))
      found.append(Layer(f'unit_{n}/norm{i}', None, sets[i]))
    if n == 0 and projected:
      found.append(Layer('unit_0/shortcut', source, 'output'))
      found.append(Layer('unit_0/shortcut_norm', None, 'output'))
    source = 'output'
  return tuple(found)


def _cifar_resnet(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  depth: int,
  stem_width: int,
  widths: Sequence[int],
) -> Architecture:
  del image_shape  # The same network at every size.
  stem = Stem(stem_width, dtype=dtype, axis_name=axis_name)
  units = ((depth - 2) // 6,) * 3
  return architecture(
    stem, widths, units, (3, 3), num_classes, {'repdistiller': torch_name}
  )


MODELS = {
  f'resnet{depth}': functools.partial(
    _cifar_resnet, depth=depth, stem_width=16, widths=(16, 32, 64)
  )
  for depth in (8, 14, 20, 32, 44, 56, 110)
} | {
  f'resnet{depth}x4': functools.partial(
    _cifar_resnet, depth=depth, stem_width=32, widths=(64, 128, 256)
  )
  for depth in (8, 32)
}
