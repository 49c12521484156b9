"""A student block between the channels of its teacher's; blocks as one."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Array, BlockOutput


class Adapted(nn.Module):
  """`inner` between 1x1 convolutions to and from its own narrower channels.

  Both have a bias, and neither a norm nor an activation: two neighbours'
  `expand` and `reduce` can then be multiplied into one.

  Attributes:
    inner: a block; its params are under 'inner'.
    reduce: channels that `inner` takes, None to give it the input as it is.
    expand: channels to return, None to return those of `inner`.
    dtype: the compute dtype.
  """

  inner: nn.Module
  reduce: int | None = None
  expand: int | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Array, train: bool) -> BlockOutput:
    if self.reduce is not None:
      x = self._linear(self.reduce, 'reduce')(x)
    out = self.inner(x, train)
    if self.reduce is not None:
      # It is not the block's own input that `inner` normalised.
      out = out._replace(normalized_input=None)
    if self.expand is None:
      return out
    expand = self._linear(self.expand, 'expand')
    features = expand(out.features)
    same = out.output is out.features
    output = features if same else expand(out.output)
    return BlockOutput(features, features, output, out.normalized_input)

  def _linear(self, width: int, name: str) -> nn.Conv:
    # No ReLU follows: Flax's default initialiser keeps the variance.
    return nn.Conv(width, (1, 1), dtype=self.dtype, name=name)


class Chain(nn.Module):
  """Blocks in a row, as one block with the last one's features.

  Attributes:
    blocks: from shallow to deep; their params are under 'blocks_0', ...
  """

  blocks: tuple[nn.Module, ...]

  def __call__(self, x: Array, train: bool) -> BlockOutput:
    for block in self.blocks:
      out = block(x, train)
      x = out.output
    # Not the chain's own input, but that of its last block, was normalised.
    return out._replace(normalized_input=None)
