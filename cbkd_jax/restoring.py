"""Arrays out of an orbax checkpoint: checked, and put where they are wanted."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cbkd_jax import buckets
from cbkd_jax.blocks import Tree
from cbkd_jax.errors import UserError


def alone() -> ocp.options.MultiprocessingOptions:
  """For what a process does without the others.

  Orbax otherwise lets all processes of a job wait for each other, also to
  read; one that fails, or has nothing to read, would leave the others there.
  """
  own = jax.process_index()
  return ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process_{own}',
  )


def restore_tree(directory: Path, template: Tree) -> Tree:
  """Reads an orbax checkpoint of nested dicts of arrays.

  On how many devices it was written, by how many processes and with what
  shardings, makes no difference.

  Args:
    directory: the checkpoint.
    template: the expected shapes and types; may be a subset of its entries.
      A `jax.ShapeDtypeStruct` with a sharding becomes a `jax.Array` with
      just that sharding, each process reading what its devices hold; any
      other leaf becomes a numpy array, the whole of it in every process.

  Raises:
    UserError: it can't be read or doesn't fit.
  """
  # Orbax finds nothing in relative ones.
  directory = buckets.absolute(directory)
  handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone())
  checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone())
  try:
    saved = checkpointer.metadata(directory).item_metadata.tree
  except Exception as error:
    raise unreadable(directory, error) from None
  found = {_name(path): leaf for path, leaf in _leaves(saved)}
  for path, leaf in _leaves(template):
    name = _name(path)
    if name not in found:
      raise UserError(
        f'checkpoint {directory} does not fit: it has no {name}, which must '
        f'have shape {tuple(leaf.shape)}'
      )
    if tuple(found[name].shape) != tuple(leaf.shape):
      raise UserError(
        f'checkpoint {directory} does not fit: {name} has shape '
        f'{tuple(found[name].shape)} there, but {tuple(leaf.shape)} here'
      )
  args = ocp.args.PyTreeRestore(
    item=template,
    restore_args=jax.tree.map(_restore_args, template),
    partial_restore=True,
  )
  try:
    return checkpointer.restore(directory, args=args)
  except Exception as error:
    raise unreadable(directory, error) from None


def _restore_args(leaf: Any) -> ocp.RestoreArgs:
  if isinstance(leaf, jax.ShapeDtypeStruct) and leaf.sharding is not None:
    return ocp.ArrayRestoreArgs(
      sharding=leaf.sharding, global_shape=leaf.shape, dtype=leaf.dtype
    )
  return ocp.RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)


def unreadable(directory: Path, error: Exception) -> UserError:
  """What to raise when orbax can't read a checkpoint."""
  reason = ' '.join(str(error).split())[:160]
  return UserError(
    f'checkpoint {directory}: cannot be read as an orbax checkpoint, is it '
    f'damaged? {reason}'
  )


def _leaves(tree: Tree) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Sequence[Any]) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'idx', k))) for k in path)
