"""What a training step sends between devices, from shapes alone.

Each step sums over all devices, once: the gradients of what trains, and a
handful of metrics. With `sync_batch_norm` each normalisation of a trained part
has two sums more: of its batch statistics in the forward pass, and of their
cotangents in the backward pass.
"""

from typing import NamedTuple

import jax

from cbkd_jax import step
from cbkd_jax.blocks import Tree
from cbkd_jax.spec import StepSpec

_FLOAT = 4  # bytes: whatever is computed in, float32 is what is summed
# The loss and the accuracy; each term comes on top.
_METRICS = 2


class Traffic(NamedTuple):
  """Of a step: what every device contributes to sums over all devices.

  Attributes:
    gradients: bytes, of the trained blocks and of the objective's own
      parameters.
    batch_norm: bytes of batch statistics and of their cotangents.
    metrics: bytes.
    reductions: sums that wait for one another, each with its latency; XLA
      makes one of those that need not.
  """

  gradients: int
  batch_norm: int
  metrics: int
  reductions: int

  @property
  def bytes(self) -> int:
    """All of them."""
    return self.gradients + self.batch_norm + self.metrics


def step_traffic(spec: StepSpec) -> Traffic:
  """The sums of a phase's step.

  Not counted is what objectives exchange by themselves: examples that are
  gathered for `global_batch`, batch statistics of regressors.

  Args:
    spec: the phase.
  """
  student, _ = spec.shapes()
  trained, stats = (
    [part for part, trains in zip(parts, spec.trained) if trains]
    for parts in student
  )
  if spec.objective.has_variables:
    trained.append(step.state_shapes(spec).params[-1])
  layers, numbers = len(jax.tree.leaves(stats)) // 2, _count(stats)
  looks = 2 if 'second_view' in spec.objective.needs else 1
  waiting = 0
  if spec.sync_batch_norm:
    numbers *= 2 * looks  # mean and mean square, forward and backward
    waiting = 2 * layers  # both looks at once
  return Traffic(
    gradients=_FLOAT * _count(trained),
    batch_norm=_FLOAT * numbers,
    metrics=_FLOAT * (_METRICS + len(spec.objective.terms)),
    reductions=waiting + 1,
  )


def _count(tree: Tree) -> int:
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
