"""Orbax checkpoints of one phase: asynchronous, atomic, checked on restore.

A phase saves what it changes: the trained parts, the objective's variables,
the optimiser's state, the randomness. Its frozen parts are in the
checkpoints of the teacher and of the stages before.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cbkd_jax.blocks import Tree, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.step import TrainState


def part_names(blocks: int) -> tuple[str, ...]:
  """Names of a network's parts in checkpoints: 'block_0' ..., 'head'."""
  return (*(f'block_{i}' for i in range(blocks)), 'head')


class PhaseCheckpoints:
  """The checkpoints of the teacher, a stage or the thaw; the last is kept.

  Args:
    directory: of the phase; is made if need be.
    read_only: nothing is made, and what is half-written is not cleared away:
      the phase may be another process's.
  """

  def __init__(self, directory: Path, read_only: bool = False):
    self._directory = directory.absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def latest(self) -> int | None:
    """The step of the last complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Tree, progress: Mapping[str, Any]) -> None:
    """Starts to save; is done at the latest when the object is closed.

    Args:
      step: of the phase.
      tree: a `snapshot`.
      progress: plain values beside it.
    """
    if self._manager.latest_step() == step:
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(tree),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
    )

  def progress(self) -> dict[str, Any]:
    """The plain values of the last checkpoint.

    Raises:
      UserError: it can't be read.
    """
    step = self._manager.latest_step()
    args = ocp.args.Composite(progress=ocp.args.JsonRestore())
    try:
      return self._manager.restore(step, args=args)['progress']
    except Exception as error:
      raise _unreadable(self._directory / str(step), error) from None

  def restore(self, template: Tree) -> Tree:
    """The last checkpoint's arrays, as numpy.

    Args:
      template: a tree with the expected shapes and types; what the
        checkpoint has beyond it is left out.

    Raises:
      UserError: it doesn't fit; names the entry and both shapes.
    """
    return restore_tree(self.state_directory(), template)

  def state_directory(self) -> Path:
    """Where the last checkpoint's arrays are, for `read_variables`."""
    return self._directory / str(self._manager.latest_step()) / 'state'

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.wait_until_finished()
    self._manager.close()


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def snapshot(state: TrainState, trained: Sequence[bool]) -> Tree:
  """A copy of what a stage changes; the next step may take the state over.

  Of one device: all hold the same, and of an array on several orbax would
  write a slice from each, every slice a program of its own.
  """
  tree = _without_empty(state_to_tree(state, trained))
  return _copy(jax.tree.map(lambda x: x.addressable_data(0), tree))


def restore_tree(directory: Path, template: Tree) -> Tree:
  """Reads an orbax checkpoint of nested dicts of arrays.

  Args:
    directory: the checkpoint.
    template: the expected shapes and types; may be a subset of its entries.

  Raises:
    UserError: it can't be read or doesn't fit.
  """
  directory = directory.absolute()  # orbax finds nothing in relative ones
  checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
  try:
    saved = checkpointer.metadata(directory).item_metadata.tree
  except Exception as error:
    raise _unreadable(directory, error) from None
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
    restore_args=jax.tree.map(
      lambda x: ocp.RestoreArgs(restore_type=np.ndarray, dtype=x.dtype),
      template,
    ),
    partial_restore=True,
  )
  try:
    return checkpointer.restore(directory, args=args)
  except Exception as error:
    raise _unreadable(directory, error) from None


def _unreadable(directory: Path, error: Exception) -> UserError:
  reason = ' '.join(str(error).split())[:160]
  return UserError(
    f'checkpoint {directory}: cannot be read as an orbax checkpoint, is it '
    f'damaged? {reason}'
  )


def _leaves(tree: Tree) -> list[tuple[Any, Any]]:
  return jax.tree_util.tree_leaves_with_path(tree)


def _name(path: Sequence[Any]) -> str:
  return '/'.join(str(getattr(k, 'key', getattr(k, 'idx', k))) for k in path)


def state_to_tree(state: TrainState, trained: Sequence[bool]) -> Tree:
  """What a stage changes, as nested dicts; see `tree_to_state`."""
  names = part_names(len(trained) - 1)
  chosen = [i for i, t in enumerate(trained) if t]
  return {
    'step': state.step,
    'rng': state.rng,
    'params': {names[i]: state.params[i] for i in chosen},
    'batch_stats': {
      names[i]: state.batch_stats[i] for i in chosen if state.batch_stats[i]
    },
    'objective': {
      'params': _numbered(state.params[-1]),
      'state': _numbered(state.objective_state),
    },
    'opt_state': _numbered(state.opt_state),
  }


def _numbered(tree: Tree) -> dict[str, Any]:
  """Leaves in order: optax's and methods' own containers need no schema."""
  return {f'{i:05d}': leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def _unnumbered(tree: Mapping[str, Any], like: Tree) -> Tree:
  leaves = [tree[name] for name in sorted(tree)]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def tree_to_state(
  checkpoints: PhaseCheckpoints, state: TrainState, trained: Sequence[bool]
) -> TrainState:
  """`state` with what the phase's last checkpoint holds.

  Raises:
    UserError: the checkpoint doesn't fit the state.
  """
  tree = _without_empty(state_to_tree(state, trained))
  tree = checkpoints.restore(tree)
  names = part_names(len(trained) - 1)
  params, stats = list(state.params), list(state.batch_stats)
  for i, name in enumerate(names):
    # A pre-stage may have no part of the network in it.
    params[i] = tree.get('params', {}).get(name, params[i])
    stats[i] = tree.get('batch_stats', {}).get(name, stats[i])
  objective = tree.get('objective', {})
  params[-1] = _unnumbered(objective.get('params', {}), params[-1])
  return TrainState(
    step=tree['step'],
    params=tuple(params),
    batch_stats=tuple(stats),
    objective_state=_unnumbered(
      objective.get('state', {}), state.objective_state
    ),
    opt_state=_unnumbered(tree['opt_state'], state.opt_state),
    rng=tree['rng'],
  )


def variables_to_tree(variables: Variables) -> Tree:
  """A whole network's variables as nested dicts, by part."""
  names = part_names(len(variables.params) - 1)
  return {
    'params': dict(zip(names, variables.params)),
    'batch_stats': {n: s for n, s in zip(names, variables.batch_stats) if s},
  }


def read_variables(
  directory: Path, template: Variables, parts: Sequence[int] | None = None
) -> Variables:
  """Reads some or all parts of a network from a checkpoint.

  Args:
    directory: an orbax checkpoint with 'params' and 'batch_stats' by part.
    template: the network's variables, or their shapes.
    parts: which ones to read (default all); the others stay `template`'s.

  Raises:
    UserError: it doesn't fit; names the part and both shapes.
  """
  names = part_names(len(template.params) - 1)
  wanted = range(len(names)) if parts is None else parts
  if not wanted:
    return template
  tree = {
    'params': {names[i]: template.params[i] for i in wanted},
    'batch_stats': {
      names[i]: template.batch_stats[i]
      for i in wanted
      if template.batch_stats[i]
    },
  }
  tree = restore_tree(directory, _without_empty(tree))
  params, stats = list(template.params), list(template.batch_stats)
  for i in wanted:
    params[i] = tree['params'][names[i]]
    stats[i] = tree.get('batch_stats', {}).get(names[i], stats[i])
  return Variables(tuple(params), tuple(stats))


def read_objective(
  directory: Path, params: Tree, state: Tree
) -> tuple[Tree, Tree]:
  """Reads an objective's (params, state).

  Args:
    directory: a phase's arrays.
    params: a tree of the expected shapes and types.
    state: likewise.

  Raises:
    UserError: it doesn't fit.
  """
  tree = {'params': _numbered(params), 'state': _numbered(state)}
  tree = restore_tree(directory, {'objective': _without_empty(tree)})
  found = tree['objective']
  return (
    _unnumbered(found.get('params', {}), params),
    _unnumbered(found.get('state', {}), state),
  )


def read_trained(
  directory: Path, template: Variables, trained: Sequence[bool]
) -> Variables:
  """`template` with the parts that a phase has trained."""
  with contextlib.closing(PhaseCheckpoints(directory, read_only=True)) as saved:
    return read_variables(
      saved.state_directory(),
      template,
      [i for i, is_trained in enumerate(trained) if is_trained],
    )


def read_learned(directory: Path, params: Tree, state: Tree) -> Tree:
  """`read_objective` of a phase's directory."""
  with contextlib.closing(PhaseCheckpoints(directory, read_only=True)) as saved:
    return read_objective(saved.state_directory(), params, state)


def write_variables(directory: Path, variables: Variables) -> None:
  """Writes a whole network's variables as one orbax checkpoint."""
  with ocp.StandardCheckpointer() as checkpointer:
    tree = _without_empty(variables_to_tree(variables))
    checkpointer.save(directory.absolute(), tree, force=True)


def is_finished(directory: Path) -> bool:
  """Whether a phase's directory holds its end, with its results."""
  if not directory.is_dir():
    return False
  with contextlib.closing(PhaseCheckpoints(directory, read_only=True)) as saved:
    return saved.latest() is not None and bool(saved.progress()['results'])


def teacher_checkpoint(path: str) -> Path:
  """The checkpoint that `config.teacher.checkpoint` means.

  Args:
    path: a workdir (its teacher), a phase's directory in one, or an orbax
      checkpoint itself.

  Raises:
    UserError: nothing of that kind is there, or the phase is not finished.
  """
  root = Path(path).expanduser().absolute()
  for directory in (root / 'teacher', root):
    steps = [d for d in directory.glob('*/state') if d.parent.name.isdigit()]
    if steps and not is_finished(directory):
      raise UserError(
        f'teacher.checkpoint = {path!r}: the training of {directory} is not '
        'finished'
      )
    if steps:
      return max(steps, key=lambda d: int(d.parent.name))
  for directory in (root / 'state', root):
    if (directory / '_METADATA').exists():
      return directory
  raise UserError(
    f'teacher.checkpoint = {path!r}: neither a workdir with a teacher nor an '
    'orbax checkpoint'
  )


def _without_empty(tree: Tree) -> Tree:
  """Nested dicts without empty ones, which orbax does not store."""
  if not isinstance(tree, Mapping):
    return tree
  pruned = {k: _without_empty(v) for k, v in tree.items()}
  return {k: v for k, v in pruned.items() if not isinstance(v, Mapping) or v}
