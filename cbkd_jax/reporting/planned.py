"""A run's stages and its blocks' sizes, of one that is not finished too."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cbkd_jax import budget_search, counting, experiment, objectives, stages
from cbkd_jax.reporting.record import Record
from cbkd_jax.stages import Stage


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run was to do.

  Attributes:
    stages: in their order, without what prepares a stage.
    steps: of each phase, those that prepare included.
    teacher: per block 'params', 'flops_per_example' and 'bytes', the head's
      with the deepest.
    student: the same of the folded student.
    keep: the keep ratios, those that were found where there is a target.
  """

  stages: tuple[Stage, ...]
  steps: Mapping[str, int]
  teacher: Sequence[Mapping[str, float]]
  student: Sequence[Mapping[str, float]]
  keep: Sequence[float]


def plan(record: Record) -> Plan:
  """The plan of a run.

  Args:
    record: what its workdir says. Where it is not finished, its networks are
      built to count what they cost.

  Raises:
    UserError: its networks can't be built here.
  """
  if record.summary is None:
    return _of_unfinished(record)
  compression = record.summary['compression']
  found = _stages(record.config, len(compression['per_block']))
  return Plan(
    stages=tuple(s for s in found if s.prepares is None),
    steps={s.name: s.training.steps for s in found},
    teacher=[block['teacher'] for block in compression['per_block']],
    student=[block['student'] for block in compression['per_block']],
    keep=compression['keep'],
  )


def _of_unfinished(record: Record) -> Plan:
  values = record.config
  found = None
  if values['compression']['target']:
    found = budget_search.stored(record.directory, values)
  # Its networks are the same on any devices; here may be fewer than it has.
  alone = {**values, 'spmd': 'pmap', 'mesh': {'data': None, 'model': 1}}
  exp = experiment.build(alone, (jax.local_devices()[0],), found)
  last = exp.predicting_network(exp.stages[-1])
  return Plan(
    stages=tuple(s for s in exp.stages if s.prepares is None),
    steps={s.name: s.training.steps for s in exp.stages},
    teacher=counting.per_block(exp.local.network(), exp.image_shape),
    student=counting.per_block(last, exp.image_shape),
    keep=exp.config['compression']['keep'],
  )


def _stages(values: Mapping[str, Any], blocks: int) -> tuple[Stage, ...]:
  """As `experiment.build` plans them, without building anything."""
  plain = stages.plan(
    order=values['order'],
    blocks=blocks,
    inherit=values['inherit'],
    train_size=values['data']['train_size'],
    batch_size=values['batch_size'],
    objective=values['objective'],
    stage=values['stage'],
    stage_overrides=values['stage_overrides'],
    thaw=values['thaw'],
  )
  return stages.with_pre_stages(
    plain, lambda expression: objectives.parse(expression).pre_stage
  )
