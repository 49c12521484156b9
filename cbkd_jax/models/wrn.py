"""Wide ResNets (Zagoruyko & Komodakis, 2016), three groups in three blocks.

Pre-activation networks: a cut lies between a group's bare sum and the
normalisation that follows it, which belongs to the next part. That part
returns its normalised input, the published view of the cut's pre-activation.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, HeadOutput, Layer
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers

_STEM_WIDTH = 16


class PreActivationUnit(nn.Module):
  """Normalisation and ReLU before each of two convolutions, and a shortcut.

  A shortcut that projects reads the activated input, any other the bare one.
  """

  width: int
  stride: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> tuple[Array, Array]:
    """Returns the unit's output and its normalised input."""
    conv = functools.partial(layers.conv, self.width, dtype=self.dtype)
    norm = functools.partial(
      layers.batch_norm, train, dtype=self.dtype, axis_name=self.axis_name
    )
    normalized = norm(name='norm1')(x)
    activated = nn.relu(normalized)
    y = conv(3, self.stride, name='conv1')(activated)
    y = nn.relu(norm(name='norm2')(y))
    y = conv(3, 1, name='conv2')(y)
    if self.stride != 1 or x.shape[-1] != self.width:
      x = conv(1, self.stride, name='shortcut')(activated)
    return layers.materialise(x + y), normalized


class WideBlock(nn.Module):
  """One group of units, the shallowest block's behind a bare convolution."""

  width: int
  units: int
  stride: int
  has_stem: bool = False
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    if self.has_stem:
      x = layers.conv(_STEM_WIDTH, dtype=self.dtype, name='stem')(x)
    normalized_input = None
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> tuple[Array, Array]:
        return PreActivationUnit(
          self.width,
          self.stride if n == 0 else 1,
          self.dtype,
          self.axis_name,
          name=f'unit_{n}',
        )(x, train)

      x, normalized = layers.unit(unit)(self, x)
      if n == 0 and not self.has_stem:
        normalized_input = normalized
    return BlockOutput(x, x, x, normalized_input)


class WideHead(nn.Module):
  """The last normalisation and ReLU, pooling and the classifier."""

  num_classes: int
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> HeadOutput:
    normalized = layers.batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)
    return layers.pool_and_classify(
      nn.relu(normalized), self.num_classes, normalized
    )


def _wiring(
  index: int, units: int, stem_is_projected: bool
) -> tuple[Layer, ...]:
  if index == 3:
    return (Layer('norm', None, 'input'), Layer('classifier', 'input', None))
  found = []
  source, projected = 'input', True
  if index == 0:
    # Without a projection the stem's channels are those that the units add to.
    source = 'stem' if stem_is_projected else 'output'
    projected = stem_is_projected
    found.append(Layer('stem', 'input', source))
  for n in range(units):
    unit, mid = f'unit_{n}', f'unit_{n}.mid'
    found.append(Layer(f'{unit}/norm1', None, source))
    found.append(Layer(f'{unit}/conv1', source, mid))
    found.append(Layer(f'{unit}/norm2', None, mid))
    found.append(Layer(f'{unit}/conv2', mid, 'output'))
    if n == 0 and projected:
      found.append(Layer(f'{unit}/shortcut', source, 'output'))
    source = 'output'
  return tuple(found)


def _torch_name(part: int, path: str) -> str:
  """RepDistiller's name, which is mdistiller's too."""
  if path in _TORCH_NAMES:
    return _TORCH_NAMES[path]
  unit, layer = path.split('/')
  layer = layer.replace('norm', 'bn').replace('shortcut', 'convShortcut')
  return f'block{part + 1}.layer.{unit.removeprefix("unit_")}.{layer}'


_TORCH_NAMES = {'stem': 'conv1', 'norm': 'bn1', 'classifier': 'fc'}


def _wrn(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  depth: int,
  widen: int,
) -> Architecture:
  del image_shape  # The same network at every size.
  widths = (16 * widen, 32 * widen, 64 * widen)

  def block(index: int, width: int, units: int) -> WideBlock:
    stride = 1 if index == 0 else 2
    return WideBlock(width, units, stride, index == 0, dtype, axis_name)

  return Architecture(
    widths=widths,
    units=((depth - 4) // 6,) * 3,
    block=block,
    head=lambda: WideHead(num_classes, dtype, axis_name),
    wiring=functools.partial(
      _wiring, stem_is_projected=widths[0] != _STEM_WIDTH
    ),
    # The next part's first layer, in front of the activation.
    cut_norm=lambda i, _: (i + 1, 'norm' if i == 2 else 'unit_0/norm1'),
    torch_names={'repdistiller': _torch_name},
  )


def find(name: str) -> Callable[..., Architecture] | None:
  """The function of any `wrn_<depth>_<widen>`, None for another name.

  Raises:
    UserError: the depth is not 6n + 4, or the widening factor is 0.
  """
  match = re.fullmatch(r'wrn_(\d+)_(\d+)', name)
  if match is None:
    return None
  depth, widen = int(match[1]), int(match[2])
  if depth < 10 or depth % 6 != 4:
    raise UserError(
      f"model '{name}': depth {depth} is not 6n + 4 (10, 16, 22, 28, ...)"
    )
  if widen < 1:
    raise UserError(f"model '{name}': widening factor {widen} is not above 0")
  return functools.partial(_wrn, depth=depth, widen=widen)


MODELS = {
  f'wrn_{depth}_{widen}': functools.partial(_wrn, depth=depth, widen=widen)
  for depth, widen in (
    (16, 1),
    (16, 2),
    (16, 4),
    (28, 2),
    (28, 10),
    (40, 1),
    (40, 2),
    (40, 4),
  )
}
