"""The devices that share a batch: the only place that knows pmap, shard_map."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cbkd_jax.blocks import Tree
from cbkd_jax.program import Program

AXIS = 'batch'  # the replicas' axis: gradients, metrics, batch statistics
DATA, MODEL = 'data', 'model'  # the axes of the mesh of 'jit'

# On CPU this pass drops `optimization_barrier` before the fusions from which
# `models.layers.materialise` protects. A name unknown to XLA is ignored.
_CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}

# Smaller arrays are on every device: to gather one takes longer than to read
# it, and BatchNorm's vectors are a thousandth of a network.
_LEAST_SHARDED = 4096


class Replicas(NamedTuple):
  """The devices that share a batch, of all processes, and how.

  With 'pmap' and 'shard_map' each device is a replica: it holds everything
  and runs the step on its share of the batch, over the axis `AXIS`. With
  'jit' one program sees the whole batch, there is no such axis, and XLA
  divides the work: examples over all devices, large arrays over `model` of
  them.

  Attributes:
    spmd: 'pmap', 'shard_map' or 'jit'.
    devices: all of them, the same in every process; device i takes the i-th
      share of a batch.
    model: over how many devices a large array is divided; 1 but for 'jit'.
  """

  spmd: str
  devices: tuple[Any, ...]
  model: int = 1

  @property
  def axis(self) -> str | None:
    """The replicas' axis in a step; None where a step has none."""
    return None if self.spmd == 'jit' else AXIS

  @property
  def count(self) -> int:
    """Among how many replicas a step divides its batch."""
    return 1 if self.spmd == 'jit' else len(self.devices)

  @property
  def mesh(self) -> Mesh:
    """The devices, with names for what is divided over them."""
    devices = np.array(self.devices)
    if self.spmd == 'jit':
      return Mesh(devices.reshape(-1, self.model), (DATA, MODEL))
    return Mesh(devices, (AXIS,))

  @property
  def everywhere(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(self.mesh, P())

  @property
  def shares(self) -> NamedSharding:
    """One entry of the leading axis on each device."""
    return NamedSharding(self.mesh, P(self.mesh.axis_names))

  @property
  def own(self) -> tuple[int, ...]:
    """Which of the devices are this process's."""
    process = jax.process_index()
    return tuple(
      i for i, d in enumerate(self.devices) if d.process_index == process
    )

  def divided(self, x: Any) -> NamedSharding:
    """Where an array of a network or its optimiser lies.

    A large one is divided along the longest dimension that `model` divides
    (fully sharded data parallelism, as in ZeRO: Rajbhandari et al., 2020).

    Args:
      x: an array, or its shape and type.
    """
    divisible = [n if n % self.model == 0 else 0 for n in x.shape]
    if self.model == 1 or x.size < _LEAST_SHARDED or not any(divisible):
      return self.everywhere
    longest = int(np.argmax(divisible))
    spec = (MODEL if i == longest else None for i in range(x.ndim))
    return NamedSharding(self.mesh, P(*spec))

  def shape(self, x: Any) -> jax.ShapeDtypeStruct:
    """Shape, type and place of an array that `divide` has placed."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.divided(x))

  def beginning(self) -> contextlib.AbstractContextManager:
    """Where a phase's arrays are made, before they are on the devices.

    Whole: in the host's memory, where devices hold but a share.
    """
    if self.model == 1 or self.devices[0].platform == 'cpu':
      return contextlib.nullcontext()
    return jax.default_device(jax.local_devices(backend='cpu')[0])

  def put(self, tree: Tree) -> Tree:
    """A copy of `tree` on every device; every process has the same `tree`."""
    return jax.tree.map(lambda x: _place(x, self.everywhere), tree)

  def divide(self, tree: Tree) -> Tree:
    """`tree` on the devices, each array as `divided` says."""
    return jax.tree.map(lambda x: _place(x, self.divided(x)), tree)

  def put_shares(self, tree: Tree) -> Tree:
    """A batch on the devices.

    Args:
      tree: this process's part of it, arrays `[len(own), ...]`.

    Returns:
      Arrays `[len(devices), ...]`, of which each device holds one entry.
    """
    count = len(self.devices)
    return jax.tree.map(
      lambda x: jax.make_array_from_process_local_data(
        self.shares, x, (count, *x.shape[1:])
      ),
      tree,
    )

  def fetch(self, tree: Tree) -> Tree:
    """`tree` as NumPy arrays, whole in every process.

    Divided arrays are gathered one by one: a device needs room for one.
    """

    def one(x: Any) -> Any:
      if isinstance(x, jax.Array) and not (
        x.is_fully_addressable or x.is_fully_replicated
      ):
        x = _gather(self.everywhere)(x)
      return jax.device_get(x)

    return jax.tree.map(one, tree)


def in_order(devices: Sequence[Any], spmd: str, model: int) -> tuple[Any, ...]:
  """The devices as `Replicas` wants them.

  Args:
    devices: all processes' devices.
    spmd: as in `Replicas`.
    model: as in `Replicas`; divides the number of devices.

  Returns:
    The same; for 'jit' with neighbours (in the network of a TPU pod) next to
    each other along `model`.
  """
  if spmd != 'jit':
    return tuple(devices)
  shape = (len(devices) // model, model)
  return tuple(mesh_utils.create_device_mesh(shape, devices).ravel())


def _place(x: Any, sharding: NamedSharding) -> jax.Array:
  if sharding.is_fully_addressable:
    return jax.device_put(x, sharding)
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    return jax.device_put(x, sharding)  # it is on all processes' devices
  # `device_put` would send the value around, to see that all have the same.
  x = np.asarray(x)
  return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)


@functools.cache
def _gather(everywhere: NamedSharding) -> Callable[[jax.Array], jax.Array]:
  return jax.jit(lambda x: x, out_shardings=everywhere)


def compile_options(device: Any) -> dict[str, Any] | None:
  """XLA's options for programs of a device, for `Program`."""
  return _CPU_OPTIONS if device.platform == 'cpu' else None


def spmd(
  fn: Callable,
  replicas: Replicas,
  *,
  replicated: int,
  batch_axis: int = 0,
  donate: tuple[int, ...] = (),
  keeps_state: bool = False,
) -> Program:
  """Runs `fn` on every replica, or on the whole batch with 'jit'.

  Args:
    fn: one replica's function; its last argument, a tree, is its own. Its
      results are the same on all replicas.
    replicas: devices, and the wrapper to use.
    replicated: how many leading arguments are the same for all replicas.
    batch_axis: which axis of a replica's own arrays counts its examples.
    donate: arguments whose memory the results may take.
    keeps_state: whether the first of two results is laid out as
      `Replicas.divide` does it; else results are on every device.

  Returns:
    The function of the global arguments; the last has a leading device axis.
  """
  options = compile_options(replicas.devices[0])
  if replicas.spmd == 'pmap':
    mapped = jax.pmap(
      fn,
      axis_name=AXIS,
      in_axes=(*(None,) * replicated, 0),
      out_axes=None,
      devices=replicas.devices,
      donate_argnums=donate,
    )
    return Program(mapped, options)
  if replicas.spmd == 'jit':
    whole = _on_whole_batch(fn, replicas, batch_axis, keeps_state)
    return Program(jax.jit(whole, donate_argnums=donate), options)

  def one(*args):
    *same, own = args
    return fn(*same, jax.tree.map(lambda x: x[0], own))

  mapped = jax.shard_map(
    one,
    mesh=replicas.mesh,
    in_specs=(*(P(),) * replicated, P(AXIS)),
    out_specs=P(),
    check_vma=False,  # as in pmap: the code above places its own pmeans
  )
  return Program(jax.jit(mapped, donate_argnums=donate), options)


def _on_whole_batch(
  fn: Callable, replicas: Replicas, batch_axis: int, keeps_state: bool
) -> Callable:
  """`fn` of the devices' shares joined, its results laid out."""
  constrain = jax.lax.with_sharding_constraint

  def join(x: jax.Array) -> jax.Array:
    x = jax.numpy.moveaxis(x, 0, batch_axis)
    shape = x.shape
    return x.reshape(*shape[:batch_axis], -1, *shape[batch_axis + 2 :])

  def whole(*args):
    *same, own = args
    out = fn(*same, jax.tree.map(join, own))
    if not keeps_state:
      return constrain(out, replicas.everywhere)
    state, rest = out
    state = jax.tree.map(lambda x: constrain(x, replicas.divided(x)), state)
    return state, constrain(rest, replicas.everywhere)

  return whole
