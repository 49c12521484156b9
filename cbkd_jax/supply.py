"""What a step supplies to the objective beyond the two views, by name.

The names are those of `objectives.method.AVAILABLE`; a method lists the ones
it wants in `needs`, and only those are made.
"""

from collections.abc import Callable

import jax

from cbkd_jax.blocks import HeadOutput, Network, Tree, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import Objective

# Purposes of a step's key besides augmentation, which folds in positions;
# `data.augment` and `data.mixing` have 2**32 - 3 and 2**32 - 4.
_EXAMPLES, _SECOND_VIEW = 2**32 - 1, 2**32 - 2
# Of a phase's key, from which the steps' keys are folded.
_FIXED_VIEWS = 2**32 - 3


def example_keys(rng: jax.Array, positions: jax.Array) -> jax.Array:
  """`[batch]` keys, the same however many replicas share the batch."""
  rng = jax.random.fold_in(rng, _EXAMPLES)
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, positions)


def second_key(rng: jax.Array) -> jax.Array:
  """The key of a step's second augmentation."""
  return jax.random.fold_in(rng, _SECOND_VIEW)


def fixed_key(rng: jax.Array) -> jax.Array:
  """The key of a phase's fixed views, from the phase's own."""
  return jax.random.fold_in(rng, _FIXED_VIEWS)


def teacher_head(
  network: Network, variables: Variables
) -> Callable[[jax.Array], HeadOutput]:
  """The teacher's head as a function of a map; frozen, in eval mode."""
  tree = {'params': variables.params[-1]}
  if variables.batch_stats[-1]:
    tree['batch_stats'] = variables.batch_stats[-1]
  tree = jax.lax.stop_gradient(tree)
  return lambda x: network.head.apply(tree, x, train=False)


def teacher_classifier(variables: Variables) -> Callable[..., jax.Array]:
  """The teacher's last linear layer: pooled `[batch, c]` -> logits."""
  layer = jax.lax.stop_gradient(variables.params[-1]['classifier'])

  def classify(pooled: jax.Array) -> jax.Array:
    logits = pooled @ layer['kernel']
    return logits + layer['bias'][None] if 'bias' in layer else logits

  return classify


def teacher_norms(
  network: Network, params: tuple[Tree, ...]
) -> tuple[tuple[jax.Array, jax.Array], ...]:
  """Per block (scale, bias) of the normalisation behind `Network.norms`.

  Args:
    network: the teacher's.
    params: per part, of the teacher.
  """
  found = []
  for part, path in network.norms:
    layer = params[part]
    for name in path.split('/'):
      layer = layer[name]
    found.append((layer['scale'], layer['bias']))
  return jax.lax.stop_gradient(tuple(found))


def check(objective: Objective, teacher: Network, head_params: Tree) -> None:
  """Refuses an objective whose needs a teacher can't meet.

  Args:
    objective: of a phase.
    teacher: the network.
    head_params: its head's params, or their shapes.

  Raises:
    UserError: naming what is missing.
  """
  for term in objective.terms:
    name, needs = term.method.name, term.method.needs
    if 'teacher_norms' in needs and teacher.norms is None:
      raise UserError(
        f"{name} needs the teacher's normalisations, and this teacher.model "
        'gives no cut_norm'
      )
    if 'teacher_classifier' in needs and 'kernel' not in head_params.get(
      'classifier', {}
    ):
      raise UserError(
        f"{name} needs the teacher's linear layer, and the head of this "
        "teacher.model has none called 'classifier'"
      )
