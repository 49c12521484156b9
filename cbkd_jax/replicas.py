"""The devices that share a batch: the only place that knows pmap, shard_map."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cbkd_jax.blocks import Tree

AXIS = 'batch'  # the replicas' axis: gradients, metrics, batch statistics

# On CPU this pass drops `optimization_barrier` before the fusions from which
# `models.layers.materialise` protects. A name unknown to XLA is ignored.
_CPU_OPTIONS = {'xla_disable_hlo_passes': 'cse_barrier_expander'}


class Replicas(NamedTuple):
  """The devices that share a batch, and how: 'pmap' or 'shard_map'."""

  spmd: str
  devices: tuple[Any, ...]

  @property
  def everywhere(self) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(Mesh(np.array(self.devices), (AXIS,)), P())

  def put(self, tree: Tree) -> Tree:
    """A copy of `tree` on every device."""
    return jax.device_put(tree, self.everywhere)


def spmd(
  fn: Callable,
  replicas: Replicas,
  *,
  replicated: int,
  summed: bool,
  donate: tuple[int, ...] = (),
) -> 'Program':
  """Runs `fn` on every replica over the axis `AXIS`.

  Args:
    fn: one replica's function; its last argument, a tree, is its own.
    replicas: devices, and the wrapper to use.
    replicated: how many leading arguments are the same on all devices.
    summed: whether the results are the same on all devices, or one each
      (stacked along a leading axis).
    donate: arguments whose memory the results may take.

  Returns:
    The function of the global arguments; the last has a leading device axis.
  """
  on_cpu = replicas.devices[0].platform == 'cpu'
  options = _CPU_OPTIONS if on_cpu else None
  if replicas.spmd == 'pmap':
    mapped = jax.pmap(
      fn,
      axis_name=AXIS,
      in_axes=(*(None,) * replicated, 0),
      out_axes=None if summed else 0,
      devices=replicas.devices,
      donate_argnums=donate,
    )
    return Program(mapped, options)

  def one(*args):
    *same, own = args
    out = fn(*same, jax.tree.map(lambda x: x[0], own))
    return out if summed else jax.tree.map(lambda x: x[None], out)

  mapped = jax.shard_map(
    one,
    mesh=Mesh(np.array(replicas.devices), (AXIS,)),
    in_specs=(*(P(),) * replicated, P(AXIS)),
    out_specs=P() if summed else P(AXIS),
    check_vma=False,  # as in pmap: the code above places its own pmeans
  )
  return Program(jax.jit(mapped, donate_argnums=donate), options)


def signature(args: Tree) -> Hashable:
  """What a compiled program depends on: structure, shapes, types, placement.

  Args:
    args: arrays, or their shapes with their shardings.
  """
  leaves, structure = jax.tree.flatten(args)
  shapes = tuple(
    (x.shape, x.dtype, getattr(getattr(x, 'sharding', None), 'spec', None))
    for x in leaves
  )
  return structure, shapes


class Program:
  """A function that is compiled once for each set of shapes.

  Attributes:
    fn: the function itself, for use inside of another.
    options: XLA's, by name.
    compile_seconds: spent in tracing and compiling, of all shapes.
  """

  def __init__(self, fn: Any, options: dict[str, Any] | None):
    self.compile_seconds = 0.0
    self.fn, self.options = fn, options
    self._compiled: dict[Any, jax.stages.Compiled] = {}
    self._lock = threading.Lock()

  def lower(self, *args: Any) -> jax.stages.Lowered:
    """Traced for arguments, or for their shapes."""
    return self.fn.lower(*args)

  def compiled(self, *args: Any) -> jax.stages.Compiled:
    """The compiled function; a second thread waits for the first one's.

    Args:
      *args: arrays as in a call, or their shapes with their shardings.
    """
    key = signature(args)
    with self._lock:
      if key not in self._compiled:
        began = time.monotonic()
        self._compiled[key] = self.lower(*args).compile(self.options)
        self.compile_seconds += time.monotonic() - began
      return self._compiled[key]

  def __call__(self, *args: Any) -> Any:
    return self.compiled(*args)(*args)
