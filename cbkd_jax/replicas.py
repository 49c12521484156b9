"""The devices that share a batch: the only place that knows pmap, shard_map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from cbkd_jax.blocks import Tree

AXIS = 'batch'  # the replicas' axis: gradients, metrics, batch statistics


class Replicas(NamedTuple):
  """The devices that share a batch, and how: 'pmap' or 'shard_map'."""

  spmd: str
  devices: tuple[Any, ...]

  def put(self, tree: Tree) -> Tree:
    """A copy of `tree` on every device."""
    mesh = Mesh(np.array(self.devices), (AXIS,))
    return jax.device_put(tree, NamedSharding(mesh, P()))


def spmd(
  fn: Callable,
  replicas: Replicas,
  *,
  replicated: int,
  summed: bool,
  donate: tuple[int, ...] = (),
) -> Callable:
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
  if replicas.spmd == 'pmap':
    return jax.pmap(
      fn,
      axis_name=AXIS,
      in_axes=(*(None,) * replicated, 0),
      out_axes=None if summed else 0,
      devices=replicas.devices,
      donate_argnums=donate,
    )

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
  return jax.jit(mapped, donate_argnums=donate)
