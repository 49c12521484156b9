"""ConvNeXt-T and -S (Liu et al., CVPR 2022), four blocks.

Block 0 is the stem and the first group of layers, the others a down-sampling
(layer normalisation, 2x2 convolution of stride 2) and a group; pooling, layer
normalisation and the classifier are the head. A unit is one ConvNeXt layer.

The stem is one convolution whose kernel and stride are its patch:

  side up to 40   1x1     32 -> 32
  side up to 96   2x2     64 -> 32
  larger          4x4     224 -> 56, as published

so that the first group sees about 32 to 64 pixels a side in all common data
sets. Stochastic depth, which the paper trains with, is left out: teacher and
student are to show the same function of an image in every step.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, HeadOutput, Layer
from cbkd_jax.models import layers

_LAYER_SCALE = 1e-6
_EXPANSION = 4


class LayerScale(nn.Module):
  """A learned factor per channel, small at first."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    gamma = self.param(
      'gamma', nn.initializers.constant(_LAYER_SCALE), x.shape[-1:]
    )
    return x * gamma.astype(self.dtype).reshape(1, 1, 1, -1)


class ConvNeXtUnit(nn.Module):
  """A depthwise 7x7 convolution, then two dense layers at every position."""

  width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = nn.Conv(
      self.width,
      (7, 7),
      padding=3,
      feature_group_count=self.width,
      kernel_init=layers.SMALL_INIT,
      dtype=self.dtype,
      name='depthwise',
    )(x)
    y = layers.layer_norm(dtype=self.dtype, name='norm')(y)
    dense = functools.partial(layers.dense, dtype=self.dtype)
    y = nn.gelu(
      dense(_EXPANSION * self.width, name='fc1')(y), approximate=False
    )
    y = dense(self.width, name='fc2')(y)
    return x + LayerScale(self.dtype, name='layer_scale')(y)


class Patches(nn.Module):
  """A convolution of non-overlapping patches, a layer normalisation beside it.

  The stem is normalised after its convolution, a down-sampling before it.
  """

  width: int
  patch: int
  is_stem: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = layers.layer_norm(dtype=self.dtype, name='norm')
    conv = nn.Conv(
      self.width,
      (self.patch, self.patch),
      strides=self.patch,
      padding='VALID',
      kernel_init=layers.SMALL_INIT,
      dtype=self.dtype,
      name='conv',
    )
    return norm(conv(x)) if self.is_stem else conv(norm(x))


class ConvNeXtBlock(nn.Module):
  """One group of units behind a stem or a down-sampling.

  Attributes:
    width: channels.
    units: layers in the group.
    patch: of the stem or the down-sampling.
    is_stem: whether it is the stem.
    dtype: the compute dtype.
  """

  width: int
  units: int
  patch: int
  is_stem: bool
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    del train  # Nothing in here depends on it.
    name = 'stem' if self.is_stem else 'down'
    x = Patches(self.width, self.patch, self.is_stem, self.dtype, name=name)(x)
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> Array:
        module = ConvNeXtUnit(self.width, self.dtype, name=f'unit_{n}')
        return layers.materialise(module(x))

      x = layers.unit(unit)(self, x)
    return BlockOutput(x, x, x)


class ConvNeXtHead(nn.Module):
  """Global average pooling, layer normalisation, classifier; in float32."""

  num_classes: int

  @nn.compact
  def __call__(self, x: Array, train: bool) -> HeadOutput:
    del train
    pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    pooled = layers.layer_norm(dtype=jnp.float32, name='norm')(pooled)
    classifier = layers.dense(
      self.num_classes, dtype=jnp.float32, name='classifier'
    )
    return HeadOutput(classifier(pooled), pooled)


def _wiring(blocks: int, index: int, units: int) -> tuple[Layer, ...]:
  """The layers of a part; all units add to the set 'output'."""
  if index == blocks:
    return (Layer('norm', None, 'input'), Layer('classifier', 'input', None))
  if index == 0:
    found = [Layer('stem/conv', 'input', 'output')]
    found.append(Layer('stem/norm', None, 'output'))
  else:
    found = [Layer('down/norm', None, 'input')]
    found.append(Layer('down/conv', 'input', 'output'))
  for n in range(units):
    unit, mid = f'unit_{n}', f'unit_{n}.mid'
    found += [
      # Each of its channels is of one input channel alone.
      Layer(f'{unit}/depthwise', None, 'output'),
      Layer(f'{unit}/norm', None, 'output'),
      Layer(f'{unit}/fc1', 'output', mid),
      Layer(f'{unit}/fc2', mid, 'output'),
      Layer(f'{unit}/layer_scale', None, 'output'),
    ]
  return tuple(found)


_FACEBOOK_LAYERS = {
  'depthwise': '.dwconv',
  'norm': '.norm',
  'fc1': '.pwconv1',
  'fc2': '.pwconv2',
  'layer_scale': '',
}
_TIMM_LAYERS = {
  'depthwise': '.conv_dw',
  'norm': '.norm',
  'fc1': '.mlp.fc1',
  'fc2': '.mlp.fc2',
  'layer_scale': '',
}


def _facebook_name(part: int, path: str) -> str:
  """The authors' names."""
  first, _, layer = path.partition('/')
  if not layer:
    return {'norm': 'norm', 'classifier': 'head'}[first]
  if first == 'stem':
    return f'downsample_layers.0.{0 if layer == "conv" else 1}'
  if first == 'down':
    return f'downsample_layers.{part}.{0 if layer == "norm" else 1}'
  unit = first.removeprefix('unit_')
  return f'stages.{part}.{unit}{_FACEBOOK_LAYERS[layer]}'


def _timm_name(part: int, path: str) -> str:
  """timm's names."""
  first, _, layer = path.partition('/')
  if not layer:
    return {'norm': 'head.norm', 'classifier': 'head.fc'}[first]
  if first == 'stem':
    return f'stem.{0 if layer == "conv" else 1}'
  if first == 'down':
    return f'stages.{part}.downsample.{0 if layer == "norm" else 1}'
  unit = first.removeprefix('unit_')
  return f'stages.{part}.blocks.{unit}{_TIMM_LAYERS[layer]}'


TORCH_NAMES = {'facebook': _facebook_name, 'timm': _timm_name}


def architecture(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  widths: Sequence[int],
  units: Sequence[int],
) -> Architecture:
  """A ConvNeXt of any widths and depths.

  Args:
    num_classes: the number of logits.
    image_shape: (height, width, channels).
    dtype: the compute dtype.
    axis_name: not used, there are no batch statistics.
    widths: channels of each group.
    units: layers in each.
  """
  del axis_name
  side = min(image_shape[:2])
  patch = 1 if side <= 40 else 2 if side <= 96 else 4

  def block(index: int, width: int, units: int) -> ConvNeXtBlock:
    is_stem = index == 0
    return ConvNeXtBlock(width, units, patch if is_stem else 2, is_stem, dtype)

  return Architecture(
    widths=tuple(widths),
    units=tuple(units),
    block=block,
    head=lambda: ConvNeXtHead(num_classes),
    wiring=functools.partial(_wiring, len(widths)),
    torch_names=TORCH_NAMES,
  )


MODELS = {
  'convnext_tiny': functools.partial(
    architecture, widths=(96, 192, 384, 768), units=(3, 3, 9, 3)
  ),
  'convnext_small': functools.partial(
    architecture, widths=(96, 192, 384, 768), units=(3, 3, 27, 3)
  ),
}
