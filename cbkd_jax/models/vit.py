"""Vision transformers (Dosovitskiy et al., 2021), four blocks of 3 layers.

The layout is DeiT's and timm's (Touvron et al., 2021): pre-normalised layers,
a class token whose normalised last state the classifier reads, a learned
position embedding. The patch embedding, class token and position embedding
are part of block 0, the last normalisation and the classifier the head. A unit
is one layer. Only the patch depends on the image size:

  side up to 16   2x2       8 -> 4x4 patches
  side up to 40   4x4      32 -> 8x8
  side up to 96   8x8      64 -> 8x8
  larger          16x16   224 -> 14x14, as published

A block takes and returns tokens `[batch, 1 + patches, channels]`, the class
token first; its features are the patches as a map. A student block's tokens
keep the teacher's channels: they are what its units add to. Narrower are its
units inside: at half the width, half the heads (of the teacher's size, at
least one) and half the hidden features. So there is nothing to adapt.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Architecture, Array, BlockOutput, HeadOutput, Layer
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers

_MLP_RATIO = 4
_UNITS = (3, 3, 3, 3)
_PATCHES = ((2, 16), (4, 40), (8, 96))  # (patch, largest side), in pixels
_LARGEST_PATCH = 16


class Attention(nn.Module):
  """Multi-head self-attention; returns what is to be added to the tokens."""

  heads: int
  head_width: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    batch, tokens, channels = x.shape
    shape = batch, tokens, 3, self.heads, self.head_width
    width = self.heads * self.head_width
    qkv = layers.dense(3 * width, dtype=self.dtype, name='qkv')(x)
    q, k, v = jnp.moveaxis(qkv.reshape(shape), 2, 0)
    mixed = jax.nn.dot_product_attention(q, k, v)
    mixed = mixed.reshape(batch, tokens, width)
    return layers.dense(channels, dtype=self.dtype, name='proj')(mixed)


class TransformerUnit(nn.Module):
  """One pre-normalised layer: attention and two dense layers, both added."""

  heads: int
  head_width: int
  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    norm = functools.partial(layers.layer_norm, dtype=self.dtype)
    dense = functools.partial(layers.dense, dtype=self.dtype)
    attention = Attention(
      self.heads, self.head_width, self.dtype, name='attention'
    )
    x = x + attention(norm(name='norm1')(x))
    y = dense(self.hidden, name='fc1')(norm(name='norm2')(x))
    y = nn.gelu(y, approximate=False)
    return x + dense(x.shape[-1], name='fc2')(y)


class VisionBlock(nn.Module):
  """A group of layers, the shallowest one's behind the embedding.

  Attributes:
    width: channels of the tokens.
    heads: attention heads.
    head_width: channels of each.
    hidden: features between the two dense layers.
    units: layers.
    grid: (height, width) in patches.
    patch: a side in pixels; None where tokens come in.
    dtype: the compute dtype.
  """

  width: int
  heads: int
  head_width: int
  hidden: int
  units: int
  grid: tuple[int, int]
  patch: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    del train  # Nothing in here depends on it.
    if self.patch is not None:
      x = self._embed(x)
    x = x.astype(self.dtype)  # what is added to it doesn't change its type
    for n in range(self.units):

      def unit(_: nn.Module, x: Array, n: int = n) -> Array:
        module = TransformerUnit(
          self.heads,
          self.head_width,
          self.hidden,
          self.dtype,
          name=f'unit_{n}',
        )
        return layers.materialise(module(x))

      x = layers.unit(unit)(self, x)
    features = x[:, 1:].reshape(-1, *self.grid, self.width)
    return BlockOutput(features, features, x)

  def _embed(self, x: Array) -> Array:
    patches = nn.Conv(
      self.width,
      (self.patch, self.patch),
      strides=self.patch,
      padding='VALID',
      kernel_init=layers.DENSE_INIT,
      dtype=self.dtype,
      name='patch_embed',
    )(x)
    patches = patches.reshape(x.shape[0], -1, self.width)
    init, count = layers.SMALL_INIT, 1 + patches.shape[1]
    token = self.param('cls_token', init, (1, 1, self.width))
    positions = self.param('pos_embed', init, (1, count, self.width))
    token = jnp.broadcast_to(token, (x.shape[0], 1, self.width))
    tokens = jnp.concatenate([token.astype(self.dtype), patches], axis=1)
    return tokens + positions.astype(self.dtype)


class ClassTokenHead(nn.Module):
  """Layer normalisation of the class token and the classifier; in float32."""

  num_classes: int

  @nn.compact
  def __call__(self, x: Array, train: bool) -> HeadOutput:
    del train
    norm = layers.layer_norm(dtype=jnp.float32, name='norm')
    pooled = norm(x[:, 0].astype(jnp.float32))
    classifier = layers.dense(
      self.num_classes, dtype=jnp.float32, name='classifier'
    )
    return HeadOutput(classifier(pooled), pooled)


def _wiring(
  blocks: int, head_width: int, index: int, units: int
) -> tuple[Layer, ...]:
  """The layers of a part; all channels of the tokens are kept."""
  if index == blocks:
    return (Layer('norm', None, None), Layer('classifier', None, None))
  found = [Layer('patch_embed', None, None)] if index == 0 else []
  for n in range(units):
    unit, heads, mid = (f'unit_{n}{set_}' for set_ in ('', '.heads', '.mid'))
    found += [
      Layer(f'{unit}/norm1', None, None),
      # A head's channels, of its queries, its keys and its values.
      Layer(
        f'{unit}/attention/qkv', None, heads, copies=3, together=head_width
      ),
      Layer(f'{unit}/attention/proj', heads, None),
      Layer(f'{unit}/norm2', None, None),
      Layer(f'{unit}/fc1', None, mid),
      Layer(f'{unit}/fc2', mid, None),
    ]
  return tuple(found)


_TIMM_LAYERS = {
  'norm1': 'norm1',
  'attention/qkv': 'attn.qkv',
  'attention/proj': 'attn.proj',
  'norm2': 'norm2',
  'fc1': 'mlp.fc1',
  'fc2': 'mlp.fc2',
}


def _timm_name(units: Sequence[int], part: int, path: str) -> str:
  """timm's names, which are DeiT's too."""
  first, _, layer = path.partition('/')
  if layer:
    unit = sum(units[:part]) + int(first.removeprefix('unit_'))
    return f'blocks.{unit}.{_TIMM_LAYERS[layer]}'
  names = {'patch_embed': 'patch_embed.proj', 'classifier': 'head'}
  return names.get(first, first)


def architecture(
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any,
  axis_name: str | None,
  *,
  name: str,
  width: int,
  heads: int,
  units: Sequence[int] = _UNITS,
) -> Architecture:
  """A vision transformer of any width and depth.

  Args:
    num_classes: the number of logits.
    image_shape: (height, width, channels).
    dtype: the compute dtype.
    axis_name: not used, there are no batch statistics.
    name: the model's, for messages.
    width: channels of the tokens, a multiple of `heads`.
    heads: attention heads.
    units: layers in each block.

  Raises:
    UserError: the images can't be cut into patches.
  """
  del axis_name
  side = min(image_shape[:2])
  patch = next((p for p, most in _PATCHES if side <= most), _LARGEST_PATCH)
  if any(side % patch for side in image_shape[:2]):
    raise UserError(
      f"model '{name}': image shape {tuple(image_shape)}: height and width "
      f'must be multiples of {patch}, the side of its patches at this size'
    )

  def block(index: int, own: int, units: int) -> VisionBlock:
    return VisionBlock(
      width=width,
      heads=max(1, int(heads * own / width + 0.5)),
      head_width=width // heads,
      hidden=_MLP_RATIO * own,
      units=units,
      grid=tuple(side // patch for side in image_shape[:2]),
      patch=patch if index == 0 else None,
      dtype=dtype,
    )

  return Architecture(
    widths=(width,) * len(units),
    units=tuple(units),
    block=block,
    head=lambda: ClassTokenHead(num_classes),
    wiring=functools.partial(_wiring, len(units), width // heads),
    adapted=False,
    torch_names={'timm': functools.partial(_timm_name, tuple(units))},
  )


MODELS = {
  name: functools.partial(architecture, name=name, width=width, heads=heads)
  for name, width, heads in (
    ('vit_tiny', 192, 3),
    ('vit_small', 384, 6),
    ('vit_base', 768, 12),
  )
}
