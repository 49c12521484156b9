"""What a step does over its replicas, where it has an axis of them.

A step that sees the whole batch has none (`axis` is None): the mean over the
batch is then the mean over replicas already.
"""

from typing import Any

import jax

from cbkd_jax.blocks import Tree


def mean(tree: Tree, axis: str | None) -> Tree:
  """The mean over replicas; `tree` itself where a step has no axis."""
  return tree if axis is None else jax.lax.pmean(tree, axis)


def gather(tree: Tree, axis: str | None) -> Tree:
  """All replicas' arrays, one after the other along the first dimension."""
  if axis is None:
    return tree
  return jax.tree.map(lambda x: jax.lax.all_gather(x, axis, tiled=True), tree)


def first_position(local_batch: int, axis: str | None) -> Any:
  """The place of a replica's first example in the global batch."""
  return 0 if axis is None else local_batch * jax.lax.axis_index(axis)


def global_size(local_batch: int, axis: str | None) -> int:
  """Examples in the global batch."""
  return local_batch * (1 if axis is None else jax.lax.axis_size(axis))
