"""A replica's batch in parts, one after the other: less memory, one step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from cbkd_jax.batch import Batch
from cbkd_jax.blocks import Tree

# Of `Batch.available`, what has an entry per example.
_PER_EXAMPLE = ('labels', 'indices', 'keys')


def mean(
  fn: Callable[[Tree, Batch], tuple[Tree, Tree]],
  carried: Tree,
  batch: Batch,
  count: int,
  unroll: bool,
) -> tuple[Tree, Tree]:
  """The mean of what `fn` finds in each micro-batch.

  Args:
    fn: `(carried, batch) -> (carried, found)`.
    carried: what a micro-batch hands on to the next one.
    batch: a replica's.
    count: of micro-batches; divides the batch. With 1 `fn` sees it whole.
    unroll: avoids a loop, see `step.train_steps`.

  Returns:
    What the last micro-batch hands on, and the mean of what was found.
  """
  if count == 1:
    return fn(carried, batch)
  arrays, rest = _take_apart(batch)
  arrays = jax.tree.map(lambda x: _rows_of_each(x, count), arrays)
  first = jax.tree.map(lambda x: x[0], arrays)
  _, shapes = jax.eval_shape(
    lambda c, own: fn(c, _put_together(own, rest)), carried, first
  )
  total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def body(carry, own):
    if unroll:
      # Nothing else keeps XLA from running all forward passes first.
      carry, own = jax.lax.optimization_barrier((carry, own))
    carried, total = carry
    carried, found = fn(carried, _put_together(own, rest))
    return (carried, jax.tree.map(jnp.add, total, found)), None

  (carried, total), _ = jax.lax.scan(
    body, (carried, total), arrays, unroll=count if unroll else 1
  )
  return carried, jax.tree.map(lambda x: x / count, total)


def _rows_of_each(x: jax.Array, count: int) -> jax.Array:
  """`[batch, ...]` to `[count, batch / count, ...]`.

  Micro-batch a has the examples i with i % count == a: of a batch that lies
  divided on several devices each device then keeps its own, and the
  micro-batches are the same as where each device divides its share.
  """
  return jnp.moveaxis(x.reshape(-1, count, *x.shape[1:]), 1, 0)


def _take_apart(batch: Batch) -> tuple[Tree, dict[str, Any]]:
  """What has an entry per example, and the rest of `available`."""
  available = dict(batch.available)
  own = {
    name: available.pop(name) for name in _PER_EXAMPLE if name in available
  }
  mixed_labels = None
  if available['mixed'] is not None:
    mixed_labels, share = available.pop('mixed')
    available['share'] = share
  return (batch.x, batch.again, batch.frozen, own, mixed_labels), available


def _put_together(arrays: Tree, rest: dict[str, Any]) -> Batch:
  x, again, frozen, own, mixed_labels = arrays
  available = {**rest, **own}
  if mixed_labels is not None:
    available['mixed'] = mixed_labels, available.pop('share')
  return Batch(x, again, frozen, available)
