"""Everything a stage changes."""

from typing import NamedTuple

import jax

from cbkd_jax.blocks import Tree, Variables


class TrainState(NamedTuple):
  """Everything a stage changes.

  Attributes:
    step: steps taken in this stage, int32.
    params: a tree per part of the network, then the objective's own.
    batch_stats: a tree per part of the network.
    objective_state: the objective's variables that are not trained.
    opt_state: of the trained parts and the objective's parameters alone.
    rng: key data (uint32) of the stage; step t uses `fold_in(rng, t)`.
  """

  step: jax.Array
  params: tuple[Tree, ...]
  batch_stats: tuple[Tree, ...]
  objective_state: Tree
  opt_state: Tree
  rng: jax.Array

  @property
  def variables(self) -> Variables:
    return Variables(self.params[:-1], self.batch_stats)
