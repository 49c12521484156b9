"""MobileNetV2 (Sandler et al., 2018), seven groups in four blocks.

A unit is an inverted residual: a 1x1 convolution to many channels, a depthwise
3x3 convolution, and a 1x1 convolution down to the few that units pass on,
without an activation. So a cut's features are their own pre-activation.

  block 0    stem, groups of 16 and 24 channels
  block 1    32
  block 2    64, 96
  block 3    160, 320
  head       1x1 convolution to 1280, pooling, classifier

`MobileNetV2` is that of the distillation literature (RepDistiller): half the
channels, ReLU, a stem of stride 2, no stride in the 24-channel group. At 32
pixels its cuts have 16, 8, 4 and 2.

`mobilenet_v2` is the paper's, in torchvision's layout without the dropout
before the classifier (which weights don't show, and a student's short training
does without): ReLU6, no expansion in the first unit. Its strides depend on the
image size such that its cuts agree with those of our ImageNet ResNets:

  side up to 40   stem and 24-channel group without stride   32 -> 32, 16, 8, 4
  side up to 96   the group without                          64 -> 32, 16, 8, 4
  larger          as published                             224 -> 56, 28, 14, 7

A narrower block scales its groups alike; a unit's inner channels follow those
of its input. A shallower one keeps the first unit of each of its groups, which
alone change the number of channels.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, Layer
from cbkd_jax.models import layers
from cbkd_jax.models import mobilenet_layout as layout

_STEM_WIDTH = 32
_LAST_WIDTH = 1280
_EXPANSION = 6


class Unit(NamedTuple):
  """What distinguishes an inverted residual.

  Attributes:
    width: output channels.
    stride: of the depthwise convolution.
    expansion: inner channels per input channel; None: as many, and no
      convolution before the depthwise one.
    residual: whether the input is added.
  """

  width: int
  stride: int
  expansion: int | None
  residual: bool


class InvertedResidual(nn.Module):
  """One unit; returns its sum, or its last normalisation's output."""

  unit: Unit
  activation: Callable[[Array], Array] = nn.relu
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    width, stride, expansion, residual = self.unit
    y = x
    if expansion is not None:
      y = conv(expansion * x.shape[-1], 1, name='conv1')(y)
      y = self.activation(norm(name='norm1')(y))
    inner = y.shape[-1]
    y = conv(inner, 3, stride, groups=inner, name='conv2')(y)
    y = self.activation(norm(name='norm2')(y))
    y = norm(name='norm3')(conv(width, 1, name='conv3')(y))
    return layers.materialise(x + y) if residual else y


class InvertedBlock(nn.Module):
  """One or two groups of units, the shallowest block's behind a stem."""

  units: tuple[Unit, ...]
  stem: nn.Module | None = None
  activation: Callable[[Array], Array] = nn.relu
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    if self.stem is not None:
      x = self.stem(x, train)
    for n in range(len(self.units)):

      def unit(_: nn.Module, x: Array, n: int = n) -> Array:
        return InvertedResidual(
          self.units[n],
          self.activation,
          self.dtype,
          self.axis_name,
          name=f'unit_{n}',
        )(x, train)

      x = layers.unit(unit)(self, x)
    return BlockOutput(x, x, x)


def _wiring(
  index: int, units: int, first_expansion: int | None
) -> tuple[Layer, ...]:
  """Units of a group add to one set; a block's last group's is 'output'."""
  if index == len(layout.BLOCK_GROUPS):
    return layers.CONV_HEAD_WIRING
  found, source = [], 'input'
  if index == 0:
    source = 'stem'
    found.append(Layer('stem/conv', 'input', source))
    found.append(Layer('stem/norm', None, source))
  for n, own in enumerate(layout.kept_units(index, units)):
    group, _ = layout.place(index, own)
    unit, mid = f'unit_{n}', f'unit_{n}.mid'
    if group == 0 and first_expansion is None:
      mid = source
    else:
      found.append(Layer(f'{unit}/conv1', source, mid))
      found.append(Layer(f'{unit}/norm1', None, mid))
    source = (
      'output' if group == layout.BLOCK_GROUPS[index][-1] else f'group_{group}'
    )
    found.append(Layer(f'{unit}/conv2', None, mid))
    found.append(Layer(f'{unit}/norm2', None, mid))
    found.append(Layer(f'{unit}/conv3', mid, source))
    found.append(Layer(f'{unit}/norm3', None, source))
  return tuple(found)


def _architecture(
  group_widths: Sequence[int],
  stem: layers.ConvNorm,
  strides: Sequence[int],
  first_expansion: int | None,
  num_classes: int,
  torch_names: Mapping[str, Callable[[int, str], str]],
) -> Architecture:
  """A MobileNetV2: `group_widths` and `strides` are those of the groups."""

  def block(index: int, width: int, units: int) -> InvertedBlock:
    *_, last = layout.BLOCK_GROUPS[index]
    found = []
    for own in layout.kept_units(index, units):
      group, number = layout.place(index, own)
      scaled = group_widths[group] * width / group_widths[last]
      found.append(
        Unit(
          width=width if group == last else max(1, int(scaled + 0.5)),
          stride=strides[group] if number == 0 else 1,
          expansion=_EXPANSION if group > 0 else first_expansion,
          residual=number > 0,
        )
      )
    return InvertedBlock(
      tuple(found),
      stem if index == 0 else None,
      stem.activation,
      stem.dtype,
      stem.axis_name,
    )

  last = stem.clone(width=_LAST_WIDTH, kernel=1, stride=1)
  return Architecture(
    widths=tuple(group_widths[groups[-1]] for groups in layout.BLOCK_GROUPS),
    units=tuple(
      sum(layout.GROUP_UNITS[group] for group in groups)
      for groups in layout.BLOCK_GROUPS
    ),
    block=block,
    head=lambda: layers.ConvHead(num_classes, last),
    wiring=functools.partial(_wiring, first_expansion=first_expansion),
    kept_units=layout.kept_units,
    # No activation follows; the published code takes the bottleneck's norm.
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm3'),
    torch_names=torch_names,
  )


def _cifar_mobilenet(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
) -> Architecture:
  del image_shape  # The same network at every size.
  stem = layers.ConvNorm(_STEM_WIDTH // 2, 3, 2, nn.relu, dtype, axis_name)
  widths = [width // 2 for width in layout.GROUP_WIDTHS]
  strides = (1, 1, 2, 2, 1, 2, 1)
  return _architecture(
    widths, stem, strides, 1, num_classes, layout.CIFAR_NAMES
  )


def _imagenet_mobilenet(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
) -> Architecture:
  side = min(image_shape[:2])
  stem_stride = 1 if side <= 40 else 2
  stem = layers.ConvNorm(
    _STEM_WIDTH, 3, stem_stride, nn.relu6, dtype, axis_name
  )
  strides = (1, 1 if side <= 96 else 2, 2, 2, 1, 2, 1)
  return _architecture(
    layout.GROUP_WIDTHS, stem, strides, None, num_classes, layout.IMAGENET_NAMES
  )


MODELS = {
  'MobileNetV2': _cifar_mobilenet,
  'mobilenet_v2': _imagenet_mobilenet,
}
