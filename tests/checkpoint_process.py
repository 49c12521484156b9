"""One process of several that save and restore together, one device each.

`python checkpoint_process.py RANK COUNT PORT DIRECTORY`; also the state that
its test compares with.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cbkd_jax import checkpoints
from cbkd_jax.checkpoints import PhaseCheckpoints
from cbkd_jax.state import TrainState

TRAINED = (True, False, True)


def mesh(data: int, model: int) -> Mesh:
  """Of the job's first devices."""
  devices = np.array(jax.devices()[: data * model])
  return Mesh(devices.reshape(data, model), ('data', 'model'))


def plan(mesh: Mesh) -> TrainState:
  """Shapes and shardings of a state: sharded, replicated, and bare leaves."""

  def leaf(shape, dtype, *spec):
    sharding = NamedSharding(mesh, P(*spec))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  kernel = leaf((4, 8), np.float32, 'data', 'model')
  block = {'kernel': kernel, 'bias': leaf((8,), np.float32, 'model')}
  # Replicated, and so large that its replicas share the writing.
  head = {'kernel': leaf((1024, 1024), np.float32)}
  return TrainState(
    step=leaf((), np.int32),
    params=(block, block, head, {'kd': {'w': leaf((4,), np.float32, 'data')}}),
    batch_stats=({'mean': leaf((8,), np.float32)}, {}, {}),
    objective_state={},
    opt_state=(optax.EmptyState(), optax.TraceState([block, head])),
    # Each process has its own.
    rng=jax.ShapeDtypeStruct((2,), np.uint32),
  )


def values(step: int) -> TrainState:
  """The whole state in numpy; every leaf is another at another step."""
  shapes = plan(mesh(1, 1))
  leaves, structure = jax.tree.flatten(shapes)
  arrays = [
    (np.arange(x.size).reshape(x.shape) + 100 * i + step).astype(x.dtype)
    for i, x in enumerate(leaves)
  ]
  return jax.tree.unflatten(structure, arrays)._replace(step=np.int32(step))


def put(state: TrainState, plan: TrainState) -> TrainState:
  """Every process has the whole; its devices get their shards."""

  def one(x, like):
    if like.sharding is None:
      return jax.numpy.asarray(x)
    return jax.make_array_from_callback(x.shape, like.sharding, lambda i: x[i])

  return jax.tree.map(one, state, plan)


def save(directory: Path, step: int, plan: TrainState) -> None:
  """Saves `values(step)`, placed as `plan` says, and takes it over."""
  state = put(values(step), plan)
  tree = checkpoints.snapshot(state, TRAINED)
  for leaf in jax.tree.leaves(state):
    leaf.delete()  # as a step does
  phase = PhaseCheckpoints(directory)
  phase.save(step, tree, {'process': jax.process_index()})
  phase.close()


def check(directory: Path, step: int, plan: TrainState) -> None:
  """That `values(step)` come back, placed as `plan` says."""
  phase = PhaseCheckpoints(directory, read_only=True)
  assert phase.latest() == step
  assert phase.progress() == {'process': 0}
  found = checkpoints.tree_to_state(phase, plan, TRAINED)
  phase.close()
  assert found.params[1] == plan.params[1]  # is not trained

  def one(path, x, like, expected):
    if isinstance(x, jax.ShapeDtypeStruct):
      return
    if like.sharding is None:
      assert isinstance(x, np.ndarray | np.generic), path
      np.testing.assert_array_equal(x, expected, strict=True)
      return
    assert x.sharding == like.sharding, path
    for shard in x.addressable_shards:
      np.testing.assert_array_equal(
        np.asarray(shard.data), expected[shard.index], strict=True
      )

  jax.tree_util.tree_map_with_path(one, found, plan, values(step))


def main() -> None:
  """Saves step 3, waits for step 4 of someone else, goes on with step 5."""
  rank, count, port = map(int, sys.argv[1:4])
  directory = Path(sys.argv[4])
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'localhost:{port}', count, rank)
  own = plan(mesh(count, 1))
  save(directory, 3, own)
  print('saved', flush=True)
  # Not for the step's directory: the one before it may still be going.
  while not (directory.parent / 'go').exists():
    time.sleep(0.02)
  check(directory, 4, own)
  save(directory, 5, plan(mesh(1, count)))
  check(directory, 5, own)
  if rank == 0:
    # Neither reading nor the student's writing waits for the others.
    check(directory, 5, own)
    whole = jax.tree.map(
      lambda x: jax.make_array_from_callback(
        x.shape, NamedSharding(mesh(count, 1), P()), lambda i: x[i]
      ),
      values(5).variables,
    )
    checkpoints.write_variables(directory.parent / 'student', whole)
  print('done', flush=True)


if __name__ == '__main__':
  main()
