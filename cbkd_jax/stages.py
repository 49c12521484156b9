"""The plan of a run: which blocks are the student's, and what trains, when.

Pure Python, no arrays: plain values in, a tuple of `Stage` out. Blocks are
numbered 0 (shallow) to B - 1 (deep); the head belongs to the deepest block.
Method: Lan et al., Scientific Reports 15:11369 (2025), figures 2 and 3.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Optional

from cbkd_jax.errors import UserError, nearest

ORDERS = (
  'counterclockwise',
  'clockwise',
  'joint',
  'joint_inherited',
  'scratch',
)


@dataclasses.dataclass(frozen=True)
class Training:
  """How one phase is trained: fields as in configs/default.py, resolved."""

  steps: int
  optimizer: str = 'sgd'
  learning_rate: float = 0.1
  schedule: str = 'cosine'
  warmup: float = 0.0
  milestones: tuple[float, ...] = ()
  decay: float = 0.1
  momentum: float = 0.9
  nesterov: bool = True
  weight_decay: float = 0.0
  clip_norm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Stage:
  """One phase of distillation.

  Attributes:
    name: 'stage_1' ... 'stage_N', 'thaw', or the control's name; of a
      pre-stage that of its stage and '_pre'.
    student: per block, whether the network has the student's (else the
      teacher's).
    trained: per part (the blocks, then the head), whether it trains. A
      trained part runs in train mode, any other in eval mode.
    folded: whether `expand` and `reduce` of neighbouring student blocks have
      been multiplied into one.
    inherited: how many of the shallowest blocks start as the teacher's.
    training: length and optimiser.
    objective: the expression that is minimised.
    prepares: of a pre-stage, the stage that it prepares: some methods first
      train variables of their own, or the block, on another loss.
    prepared: whether a pre-stage comes before; its network goes on.
    quantize: 'int8' where it trains as if the network computed in integers;
      else ''.
  """

  name: str
  student: tuple[bool, ...]
  trained: tuple[bool, ...]
  folded: bool
  inherited: int
  training: Training
  objective: str
  prepares: Optional['Stage'] = None
  prepared: bool = False
  quantize: str = ''

  @property
  def shared(self) -> int:
    """How many leading parts are the teacher's own and frozen.

    Teacher and hybrid compute the same there, so a step runs them once.
    """
    own = [s or t for s, t in zip((*self.student, True), self.trained)]
    if self.folded:  # a control's shallow blocks may not be the teacher's
      own = [o or i >= self.inherited for i, o in enumerate(own)]
    return own.index(True)

  @property
  def trained_blocks(self) -> tuple[int, ...]:
    """Indices of the trained blocks (without the head)."""
    return tuple(i for i, t in enumerate(self.trained[:-1]) if t)


def training(
  values: Mapping[str, Any], train_size: int, batch_size: int
) -> Training:
  """Resolves a phase's config fields: epochs become optimiser steps."""
  values = dict(values)
  epochs, steps = values.pop('epochs'), values.pop('steps')
  if steps is None:
    steps = max(1, round(epochs * train_size / batch_size))
  values['milestones'] = tuple(values['milestones'])
  return Training(steps=steps, **values)


def plan(
  *,
  order: str,
  blocks: int,
  inherit: int,
  train_size: int,
  batch_size: int,
  objective: str,
  stage: Mapping[str, Any],
  stage_overrides: Mapping[str, Mapping[str, Any]],
  thaw: Mapping[str, Any],
) -> tuple[Stage, ...]:
  """The stages of a run, in the order in which they are run.

  Args:
    order: one of `ORDERS`.
    blocks: B, the number of blocks.
    inherit: how many of the shallowest blocks are never compressed.
    train_size: training examples, to turn epochs into steps.
    batch_size: examples per step.
    objective: the objective's expression.
    stage: fields of every stage before the thaw.
    stage_overrides: 'stage_k' -> fields that deviate (None: does not).
    thaw: fields of the thaw and 'quantize'; 'objective' may be None.

  Returns:
    The stages; the controls without stages have one, of the control's name
    and as many steps as the method would have in all.

  Raises:
    UserError: unknown order, `inherit` out of range, an override of a stage
      that the plan does not have.
  """
  if order not in ORDERS:
    raise UserError(
      f'order = {order!r} is not known{nearest(order, ORDERS)}; '
      f'allowed: {", ".join(ORDERS)}'
    )
  if not 1 <= inherit < blocks:
    raise UserError(
      f'inherit = {inherit}: must be at least 1 and below the number of '
      f'blocks, {blocks}'
    )
  count = blocks - inherit
  overrides = {
    name: {k: v for k, v in fields.items() if v is not None}
    for name, fields in stage_overrides.items()
  }
  names = [f'stage_{i + 1}' for i in range(count)]
  for name, fields in overrides.items():
    if fields and name not in names:
      raise UserError(
        f'stage_overrides.{name}: there is no such stage; this plan has '
        f'{names[0]} to {names[-1]}'
      )
  # Deepest first is "from the output towards the input": counterclockwise.
  indices = list(range(inherit, blocks))
  if order != 'clockwise':
    indices.reverse()
  stages, replaced = [], set()
  for name, k in zip(names, indices):
    fields = {**stage, 'objective': objective, **overrides.get(name, {})}
    expression = fields.pop('objective')
    replaced.add(k)
    trained = [i == k for i in range(blocks)] + [k == blocks - 1]
    stages.append(
      Stage(
        name=name,
        student=tuple(i in replaced for i in range(blocks)),
        trained=tuple(trained),
        folded=False,
        inherited=inherit,
        training=training(fields, train_size, batch_size),
        objective=expression,
      )
    )
  fields = dict(thaw)
  expression = fields.pop('objective') or objective
  quantize = fields.pop('quantize')
  last = Stage(
    name='thaw',
    student=tuple(i >= inherit for i in range(blocks)),
    trained=(True,) * (blocks + 1),
    folded=True,
    inherited=inherit,
    training=training(fields, train_size, batch_size),
    objective=expression,
    quantize=quantize,
  )
  if order in ('counterclockwise', 'clockwise'):
    return (*stages, last)
  total = last.training.steps + sum(s.training.steps for s in stages)
  return (
    dataclasses.replace(
      last,
      name=order,
      inherited=inherit if order == 'joint_inherited' else 0,
      training=dataclasses.replace(last.training, steps=total),
      objective='ce' if order == 'scratch' else expression,
    ),
  )


def with_pre_stages(
  stages: Iterable[Stage], pre_stage: Callable[[str], Mapping[str, float]]
) -> tuple[Stage, ...]:
  """Puts the objectives' pre-stages before the stages that they prepare.

  A pre-stage takes its steps from its stage's: all methods train equally
  long. One that trains blocks gives a new block its start; the thaw of the
  method has none, its blocks have been trained.

  Args:
    stages: a plan.
    pre_stage: `expression -> {what is trained: share of the stage's steps}`,
      'variables' (the methods' own alone) or 'blocks' (the stage's too).

  Returns:
    The plan.

  Raises:
    UserError: a stage of one step can't be shared.
  """
  found = []
  for stage in stages:
    shares = dict(pre_stage(stage.objective))
    if stage.name == 'thaw':
      shares.pop('blocks', None)
    if not shares:
      found.append(stage)
      continue
    total = stage.training.steps
    if total < 2:
      raise UserError(
        f'{stage.name}: {total} step is too few for the pre-stage of '
        f'{stage.objective!r}; at least 2 are needed'
      )
    steps = min(max(1, round(max(shares.values()) * total)), total - 1)
    # No later layer than the loss looks at: not the head.
    trained = (*stage.trained[:-1], False)
    if 'blocks' not in shares:
      trained = (False,) * len(stage.trained)
    found.append(
      dataclasses.replace(
        stage,
        name=f'{stage.name}_pre',
        trained=trained,
        training=dataclasses.replace(stage.training, steps=steps),
        prepares=stage,
      )
    )
    training = dataclasses.replace(stage.training, steps=total - steps)
    found.append(dataclasses.replace(stage, training=training, prepared=True))
  return tuple(found)
