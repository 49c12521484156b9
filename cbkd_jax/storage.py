"""How rows of a tree of arrays are kept: which leaves, in which precision.

Maps `[rows, height, width, channels]` and tokens `[rows, tokens, channels]`
may be rounded; what is smaller per row (logits, pooled vectors) is kept as it
is.
"""

import dataclasses

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import Tree

_LEAST_ROUNDED = 3  # dimensions

Rows = dict[str, dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Layout:
  """What is kept of a tree.

  Attributes:
    dtype: of maps and tokens: 'exact' (as they are), 'bfloat16', or 'uint8'
      with an offset and a step of its own per row and channel.
    leaves: pairs (a leaf that is kept, the leaf of the same values as which
      it is kept), numbers in the order of `jax.tree.leaves`.
  """

  dtype: str
  leaves: tuple[tuple[int, int], ...]

  @property
  def sources(self) -> tuple[int, ...]:
    """The leaves that are stored, each once."""
    return tuple(sorted({source for _, source in self.leaves}))


def encode(layout: Layout, tree: Tree) -> Rows:
  """The kept leaves, each as a dict of arrays with leading rows.

  Args:
    layout: what to keep.
    tree: arrays `[rows, ...]`.

  Returns:
    {number of a source: its arrays}.
  """
  leaves = jax.tree.leaves(tree)
  return {str(i): _encode(leaves[i], layout.dtype) for i in layout.sources}


def decode(layout: Layout, rows: Rows, shapes: Tree) -> Tree:
  """The tree that was encoded; zeros for what was not kept.

  Args:
    layout: as for `encode`.
    rows: from `encode`.
    shapes: of the tree.

  Returns:
    Arrays of the shapes and types in `shapes`.
  """
  leaves, structure = jax.tree.flatten(shapes)
  kept = {
    i: _decode(rows[str(source)], leaves[i].dtype)
    for i, source in layout.leaves
  }
  return jax.tree.unflatten(
    structure,
    [
      kept[i] if i in kept else jnp.zeros(leaf.shape, leaf.dtype)
      for i, leaf in enumerate(leaves)
    ],
  )


def is_rounded(x: jax.Array) -> bool:
  """Whether an array `[rows, ...]` is one of those that may be rounded."""
  return x.ndim >= _LEAST_ROUNDED


def _encode(x: jax.Array, dtype: str) -> dict[str, jax.Array]:
  if not is_rounded(x) or dtype == 'exact':
    return {'values': x}
  if dtype == 'bfloat16':
    return {'values': x.astype(jnp.bfloat16)}
  x = x.astype(jnp.float32)
  places = tuple(range(1, x.ndim - 1))
  low = jnp.min(x, axis=places, keepdims=True)
  step = (jnp.max(x, axis=places, keepdims=True) - low) / 255
  # A constant channel has no step: its offset says all.
  codes = jnp.round((x - low) / jnp.where(step > 0, step, 1.0))
  return {'codes': codes.astype(jnp.uint8), 'low': low, 'step': step}


def _decode(arrays: dict[str, jax.Array], dtype: jnp.dtype) -> jax.Array:
  if 'values' in arrays:
    return arrays['values'].astype(dtype)
  codes = arrays['codes'].astype(jnp.float32)
  return (arrays['low'] + codes * arrays['step']).astype(dtype)
