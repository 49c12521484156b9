"""Networks whose arrays are divided over devices, gathered where they run."""

import dataclasses
from typing import Any

import jax
from jax.sharding import NamedSharding

from cbkd_jax.blocks import Network
from cbkd_jax.replicas import Replicas


@dataclasses.dataclass(frozen=True)
class Gathered:
  """A part that gathers its variables on every device before it runs.

  So a device holds one part's arrays whole, and a share of all others. Their
  gradients go back the same way. Without it XLA might as well divide the
  convolutions themselves, and send activations around.

  Attributes:
    part: the Linen module.
    everywhere: a copy on every device.
  """

  part: Any
  everywhere: NamedSharding

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """The module's own, of gathered variables."""
    gathered = jax.lax.with_sharding_constraint(variables, self.everywhere)
    return self.part.apply(gathered, *args, **kwargs)

  def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
    """The module's own."""
    return self.part.init_with_output(*args, **kwargs)


def gathered(network: Network, replicas: Replicas) -> Network:
  """`network` for the step of devices that divide its arrays.

  Args:
    network: the network.
    replicas: the devices.
  """
  if replicas.model == 1:
    return network

  def one(part: Any) -> Gathered:
    if isinstance(part, Gathered):
      return part
    return Gathered(part, replicas.everywhere)

  return dataclasses.replace(
    network,
    blocks=tuple(one(block) for block in network.blocks),
    head=one(network.head),
  )
