"""DenseNet-BC for CIFAR (Huang et al., 2017), three groups in three blocks.

A unit reads all that its group has made before it and appends `growth`
channels. Between groups lies a transition: normalisation, ReLU, a 1x1
convolution to half of the channels, 2x2 average pooling. It opens the deeper
block. So a cut has the sides of our ResNets' (32, 16, 8 at 32 pixels) and all
that a group made, side by side, before any normalisation; as in Wide ResNets
the next part returns its normalised input, the cut's pre-activation.

`densenet_bc_<depth>_<growth>`, depth 6n + 4; the paper's are 100_12, 250_24 and
190_40. No dropout: the paper uses none with augmented images.

A block's width is what comes in through the stem or the transition, and
`growth` for each unit. Of a narrower block, growth is scaled as the width is,
rounded down; the stem or the transition makes up for the rest, and for units
left out.

A unit's input is made of its predecessors' outputs, each with channels of its
own choice, which is more than `wiring` can say: student blocks start at random,
or with fitted adapters ('pca').
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers, wrn

_BOTTLENECK = 4  # channels between a unit's convolutions, by its growth


class DenseUnit(nn.Module):
  """Normalisation, ReLU and convolution, twice; appends to its input."""

  growth: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    conv = functools.partial(layers.conv, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    y = nn.relu(norm(name='norm1')(x))
    y = conv(_BOTTLENECK * self.growth, 1, name='conv1')(y)
    y = nn.relu(norm(name='norm2')(y))
    y = conv(self.growth, 3, name='conv2')(y)
    return layers.materialise(jnp.concatenate([x, y], axis=-1))


class Transition(nn.Module):
  """Normalisation, ReLU, 1x1 convolution and 2x2 average pooling."""

  width: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Returns its output and its normalised input."""
    normalized = layers.batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)
    y = nn.relu(normalized)
    y = layers.conv(self.width, 1, dtype=self.dtype, name='conv')(y)
    return nn.avg_pool(y, (2, 2), (2, 2)), normalized


class DenseBlock(nn.Module):
  """A group behind the stem, a bare convolution, or behind a transition.

  Attributes:
    entry: channels that the stem or the transition lets in.
    growth: channels that each unit appends.
    units: their number.
    has_stem: which of the two it is.
    dtype: the compute dtype.
    axis_name: see `layers.batch_norm`.
  """

  entry: int
  growth: int
  units: int
  has_stem: bool = False
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    normalized_input = None
    if self.has_stem:
      x = layers.conv(self.entry, dtype=self.dtype, name='stem')(x)
    else:
      x, normalized_input = Transition(
        self.entry, self.dtype, self.axis_name, name='transition'
      )(x, train)
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> Array:
        return DenseUnit(
          self.growth, self.dtype, self.axis_name, name=f'unit_{n}'
        )(x, train)

      x = layers.unit(unit)(self, x)
    return BlockOutput(x, x, x, normalized_input)


def _densenet(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  depth: int,
  growth: int,
) -> Architecture:
  del image_shape  # The same network at every size.
  own_units = (depth - 4) // 6
  widths, entry = [], 2 * growth
  for _ in range(3):
    widths.append(entry + own_units * growth)
    entry = widths[-1] // 2

  def block(index: int, width: int, units: int) -> DenseBlock:
    grown = max(1, growth * width // widths[index])
    entry = width - units * grown
    if entry < 1:
      raise UserError(
        f'compression.keep: block {index} of a DenseNet would get {width} '
        f'channels; its {units} units need at least {units + 1}, for each '
        'appends one to those that come in'
      )
    return DenseBlock(entry, grown, units, index == 0, dtype, axis_name)

  return Architecture(
    widths=tuple(widths),
    units=(own_units,) * 3,
    block=block,
    head=lambda: wrn.WideHead(num_classes, dtype, axis_name),
    # The next part's first layer, in front of the activation.
    cut_norm=lambda i, _: (i + 1, 'norm' if i == 2 else 'transition/norm'),
  )


def find(name: str) -> Callable[..., Architecture] | None:
  """The function of any `densenet_bc_<depth>_<growth>`, None for another name.

  Raises:
    UserError: the depth is not 6n + 4, or the growth is 0.
  """
  match = re.fullmatch(r'densenet_bc_(\d+)_(\d+)', name)
  if match is None:
    return None
  depth, growth = int(match[1]), int(match[2])
  if depth < 10 or depth % 6 != 4:
    raise UserError(
      f"model '{name}': depth {depth} is not 6n + 4 (10, 16, 22, 28, ...)"
    )
  if growth < 1:
    raise UserError(f"model '{name}': growth {growth} is not above 0")
  return functools.partial(_densenet, depth=depth, growth=growth)


MODELS = {
  f'densenet_bc_{depth}_12': functools.partial(
    _densenet, depth=depth, growth=12
  )
  for depth in (40, 100)
}
