"""States and networks as nested dicts by part: what checkpoints hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cbkd_jax.blocks import Tree, Variables
from cbkd_jax.state import TrainState


def part_names(blocks: int) -> tuple[str, ...]:
  """Names of a network's parts in checkpoints: 'block_0' ..., 'head'."""
  return (*(f'block_{i}' for i in range(blocks)), 'head')


def from_state(state: TrainState, trained: Sequence[bool]) -> Tree:
  """What a stage changes; see `to_state`."""
  chosen = [i for i, t in enumerate(trained) if t]
  variables = from_variables(state.variables, chosen)
  return without_empty(
    {
      'step': state.step,
      'rng': state.rng,
      **variables,
      'objective': from_objective(state.params[-1], state.objective_state),
      'opt_state': numbered(state.opt_state),
    }
  )


def to_state(tree: Tree, state: TrainState) -> TrainState:
  """`state` with what `tree`, as `from_state` makes it, holds."""
  params, stats = to_variables(tree, state.variables)
  own, objective_state = to_objective(
    tree, state.params[-1], state.objective_state
  )
  return TrainState(
    step=tree['step'],
    params=(*params, own),
    batch_stats=stats,
    objective_state=objective_state,
    opt_state=unnumbered(tree['opt_state'], state.opt_state),
    rng=tree['rng'],
  )


def from_variables(
  variables: Variables, parts: Sequence[int] | None = None
) -> Tree:
  """A network's variables by part; some parts, or all."""
  names = part_names(len(variables.params) - 1)
  chosen = range(len(names)) if parts is None else parts
  return without_empty(
    {
      'params': {names[i]: variables.params[i] for i in chosen},
      'batch_stats': {names[i]: variables.batch_stats[i] for i in chosen},
    }
  )


def to_variables(tree: Tree, variables: Variables) -> Variables:
  """`variables` with the parts that `tree` holds."""
  names = part_names(len(variables.params) - 1)
  # A pre-stage may have no part of the network in it.
  params, stats = tree.get('params', {}), tree.get('batch_stats', {})
  return Variables(
    tuple(params.get(n, p) for n, p in zip(names, variables.params)),
    tuple(stats.get(n, s) for n, s in zip(names, variables.batch_stats)),
  )


def from_objective(params: Tree, state: Tree) -> Tree:
  """An objective's variables."""
  return without_empty({'params': numbered(params), 'state': numbered(state)})


def to_objective(tree: Tree, params: Tree, state: Tree) -> tuple[Tree, Tree]:
  """An objective's (params, state) from the entry of its name, if any."""
  found = tree.get('objective', {})
  return (
    unnumbered(found.get('params', {}), params),
    unnumbered(found.get('state', {}), state),
  )


def numbered(tree: Tree) -> dict[str, Any]:
  """Leaves in order: optax's and methods' own containers need no schema."""
  return {f'{i:05d}': leaf for i, leaf in enumerate(jax.tree.leaves(tree))}


def unnumbered(tree: Mapping[str, Any], like: Tree) -> Tree:
  """The leaves of `numbered` in the containers of `like`."""
  leaves = [tree[name] for name in sorted(tree)]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def without_empty(tree: Tree) -> Tree:
  """Nested dicts without empty ones, which orbax does not store."""
  if not isinstance(tree, Mapping):
    return tree
  pruned = {k: without_empty(v) for k, v in tree.items()}
  return {k: v for k, v in pruned.items() if not isinstance(v, Mapping) or v}
