"""Networks whose arrays are divided over devices, gathered where they run."""

import dataclasses
from typing import Any

import jax

from cbkd_jax.blocks import RECOMPUTING, Network
from cbkd_jax.models.layers import materialise
from cbkd_jax.replicas import Replicas


def _all_but_gathered(primitive: Any, *_: Any, **__: Any) -> bool:
  """Whether the backward pass may keep a result: not what was gathered."""
  return primitive.name != 'sharding_constraint'


@dataclasses.dataclass(frozen=True)
class Gathered:
  """A part that gathers its variables on every device before it runs.

  So a device holds one part's arrays whole, and a share of all others; the
  backward pass gathers them again. Gradients go back the same way. Without it
  XLA might as well divide the convolutions themselves, and send activations
  around.

  Attributes:
    part: the Linen module.
    replicas: the devices.
  """

  part: Any
  replicas: Replicas

  def apply(self, variables: Any, x: Any, **kwargs: Any) -> Any:
    """The module's own, of gathered variables."""
    found: dict[str, Any] = {}

    def run(variables: Any, x: Any) -> list[Any]:
      gathered = jax.tree.map(self._gather, variables)
      out = self.part.apply(gathered, x, **kwargs)
      leaves, found['structure'] = jax.tree.flatten(out)
      # A part may return an array twice; `views.equal_leaves` is to see it.
      each = {id(leaf): leaf for leaf in leaves}
      found['places'] = [list(each).index(id(leaf)) for leaf in leaves]
      return list(each.values())

    # XLA's CPU backend would gather all parts at the start of a program.
    variables, x = materialise((variables, x))
    if not RECOMPUTING.get():  # else what is around it gathers again
      run = jax.checkpoint(run, policy=_all_but_gathered)
    arrays = run(variables, x)
    return jax.tree.unflatten(
      found['structure'], [arrays[i] for i in found['places']]
    )

  def _gather(self, x: jax.Array) -> jax.Array:
    constrain = jax.lax.with_sharding_constraint
    # The first is for the gradients, which are constrained in reverse order:
    # each is divided as soon as it is summed, not kept whole.
    x = constrain(x, self.replicas.divided(x))
    return constrain(x, self.replicas.everywhere)

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
    return Gathered(part, replicas)

  return dataclasses.replace(
    network,
    blocks=tuple(one(block) for block in network.blocks),
    head=one(network.head),
  )
