"""Orbax checkpoints of one phase: asynchronous, atomic, checked on restore.

A phase saves what it changes: the trained parts, the objective's variables,
the optimiser's state, the randomness. Its frozen parts are in the
checkpoints of the teacher and of the stages before.

The processes of a job save together, on a file system that all of them see:
each writes the shards that its devices hold. Each reads for itself.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from cbkd_jax import buckets, trees
from cbkd_jax.blocks import Tree, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.restoring import alone, restore_tree, unreadable
from cbkd_jax.state import TrainState

# Replicas share the writing of an array from this size of a share on. Below,
# the slicing, a program per shape, costs more than the writing.
_SHARED_BYTES = 2**20


class PhaseCheckpoints:
  """The checkpoints of the teacher, a stage or the thaw; the last is kept.

  Every process of a job makes one, saves and closes it at the same points.

  Args:
    directory: of the phase; is made if need be.
    read_only: nothing is made, and what is half-written is not cleared away:
      the phase may be another process's. Waits for no other process.

  Attributes:
    half_written: (step, directory) of each write that died half-way. They are
      no checkpoints: `latest` doesn't know them.
  """

  def __init__(self, directory: Path, read_only: bool = False):
    self._directory = buckets.absolute(directory)
    self.half_written = _half_written(self._directory)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=1,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
      **({'multiprocessing_options': alone()} if read_only else {}),
    )
    self._manager = _Manager(
      self._directory,
      options=options,
      item_handlers={
        'state': ocp.PyTreeCheckpointHandler(type_handler_registry=_types()),
        'progress': ocp.JsonCheckpointHandler(),
      },
    )

  def latest(self) -> int | None:
    """The step of the last complete checkpoint, None if there is none."""
    return self._manager.latest_step()

  def save(self, step: int, tree: Tree, progress: Mapping[str, Any]) -> None:
    """Starts to save; is done at the latest when the object is closed.

    Args:
      step: of the phase.
      tree: a `snapshot`.
      progress: plain values beside it; those of process 0 are written.
    """
    if self._manager.latest_step() == step:
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.PyTreeSave(tree),
        progress=ocp.args.JsonSave(dict(progress)),
      ),
    )

  def progress(self) -> dict[str, Any]:
    """The plain values of the last checkpoint.

    Raises:
      UserError: it can't be read.
    """
    step = self._directory / str(self._manager.latest_step())
    handler = ocp.JsonCheckpointHandler(multiprocessing_options=alone())
    reader = ocp.Checkpointer(handler, multiprocessing_options=alone())
    try:
      return reader.restore(step / 'progress')
    except Exception as error:
      raise unreadable(step, error) from None

  def restore(self, template: Tree) -> Tree:
    """The last checkpoint's arrays; see `restore_tree`.

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


class _Manager(ocp.CheckpointManager):
  """Leaves it to the run to ask JAX whether preempted processes are to stop.

  JAX keeps one counter and gives one answer: orbax, asking with the steps of a
  phase, would take the answer from `preemption`, which asks in every step.
  """

  def reached_preemption(self, step: int) -> bool:
    del step
    return False


def _half_written(directory: Path) -> tuple[tuple[int, Path], ...]:
  """What orbax has begun to write and not marked as whole.

  On a disk it lacks its final name, in a bucket a file that is written last.
  """
  if not directory.is_dir():
    return ()
  found = []
  for path in directory.iterdir():
    step = path.name.partition('.')[0]
    if step.isdigit() and ocp.utils.is_tmp_checkpoint(path):
      found.append((int(step), path))
  return tuple(sorted(found))


def _types() -> ocp.type_handlers.TypeHandlerRegistry:
  """How arrays are written."""
  handlers = ocp.type_handlers
  arrays = handlers.ArrayHandler(
    min_slice_bytes_for_replica_parallel=_SHARED_BYTES
  )
  return handlers.create_type_handler_registry(
    (np.ndarray, handlers.NumpyHandler()), (jax.Array, arrays)
  )


def snapshot(state: TrainState, trained: Sequence[bool]) -> Tree:
  """A copy of what a stage changes; the next step may take the state over.

  An array that every device of this process holds in full becomes a copy on
  one of them. One that is sharded, or shared with other processes, stays as
  it is spread: those are copied by all processes of a job together.
  """
  tree = trees.from_state(state, trained)
  leaves, structure = jax.tree.flatten(tree)
  own = [x.is_fully_addressable and x.is_fully_replicated for x in leaves]
  whole = [x.addressable_data(0) for x, is_own in zip(leaves, own) if is_own]
  spread = [x for x, is_own in zip(leaves, own) if not is_own]
  whole = _copier(None)(whole)
  if jax.process_count() > 1:
    # Each process has its own; orbax takes it for a mistake unless in numpy.
    whole = jax.device_get(whole)
  spread = _copier(tuple(x.sharding for x in spread))(spread) if spread else []
  copies = {True: iter(whole), False: iter(spread)}
  return jax.tree.unflatten(structure, [next(copies[is_own]) for is_own in own])


@functools.lru_cache(maxsize=8)
def _copier(shardings: tuple[Any, ...] | None) -> Any:
  """A program that copies a list of arrays; shardings: of the copies."""
  return jax.jit(
    lambda leaves: [jnp.copy(leaf) for leaf in leaves],
    out_shardings=None if shardings is None else list(shardings),
  )


def tree_to_state(
  checkpoints: PhaseCheckpoints, state: TrainState, trained: Sequence[bool]
) -> TrainState:
  """`state` with what the phase's last checkpoint holds.

  Args:
    checkpoints: of the phase.
    state: arrays, or their shapes, with shardings where the result is to
      have them; see `restore_tree`.
    trained: which parts the phase trains.

  Raises:
    UserError: the checkpoint doesn't fit the state.
  """
  tree = checkpoints.restore(trees.from_state(state, trained))
  return trees.to_state(tree, state)


def read_variables(
  directory: Path, template: Variables, parts: Sequence[int] | None = None
) -> Variables:
  """Reads some or all parts of a network from a checkpoint.

  Args:
    directory: an orbax checkpoint with 'params' and 'batch_stats' by part.
    template: the network's variables, or their shapes; see `restore_tree`.
    parts: which ones to read (default all); the others stay `template`'s.

  Raises:
    UserError: it doesn't fit; names the part and both shapes.
  """
  tree = trees.from_variables(template, parts)
  if not tree:
    return template
  return trees.to_variables(restore_tree(directory, tree), template)


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
  tree = trees.without_empty({'objective': trees.from_objective(params, state)})
  found = restore_tree(directory, tree) if tree else {}
  return trees.to_objective(found, params, state)


def read_trained(
  directory: Path, template: Variables, trained: Sequence[bool]
) -> Variables:
  """`template` with the parts that a phase has trained."""
  parts = [i for i, is_trained in enumerate(trained) if is_trained]
  return read_variables(_last_arrays(directory), template, parts)


def read_learned(directory: Path, params: Tree, state: Tree) -> Tree:
  """`read_objective` of a phase's directory."""
  return read_objective(_last_arrays(directory), params, state)


def _last_arrays(directory: Path) -> Path:
  with contextlib.closing(PhaseCheckpoints(directory, read_only=True)) as saved:
    return saved.state_directory()


def write_variables(directory: Path, variables: Variables) -> None:
  """Writes a whole network's variables as one orbax checkpoint.

  Args:
    directory: of the checkpoint; what is there is replaced.
    variables: each process holds them in full: one writes, for all.
  """
  tree = jax.device_get(trees.from_variables(variables))
  with ocp.StandardCheckpointer(multiprocessing_options=alone()) as writer:
    writer.save(buckets.absolute(directory), tree, force=True)


def results(directory: Path) -> dict[str, Any] | None:
  """The figures of a phase; None if its directory does not hold its end."""
  if not directory.is_dir():
    return None
  with contextlib.closing(PhaseCheckpoints(directory, read_only=True)) as saved:
    return saved.progress()['results'] if saved.latest() is not None else None


def is_finished(directory: Path) -> bool:
  """Whether a phase's directory holds its end, with its results."""
  return bool(results(directory))


def teacher_checkpoint(path: str) -> Path:
  """The checkpoint that `config.teacher.checkpoint` means.

  Args:
    path: a workdir (its teacher), a phase's directory in one, or an orbax
      checkpoint itself.

  Raises:
    UserError: nothing of that kind is there, or the phase is not finished.
  """
  root = buckets.absolute(buckets.path(path, 'teacher.checkpoint'))
  for directory in (root / 'teacher', root):
    if not any(d.parent.name.isdigit() for d in directory.glob('*/state')):
      continue
    if not is_finished(directory):
      raise UserError(
        f'teacher.checkpoint = {path!r}: the training of {directory} is not '
        'finished'
      )
    return _last_arrays(directory)
  for directory in (root / 'state', root):
    if (directory / '_METADATA').exists():
      return directory
  raise UserError(
    f'teacher.checkpoint = {path!r}: neither a workdir with a teacher nor an '
    'orbax checkpoint'
  )
