"""What a training step costs with one objective or another."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.console

from cbkd_jax import (
  config,
  counting,
  experiment,
  summary,
)
from cbkd_jax.errors import UserError

BATCH = 16  # examples per counted step


def costs(
  values: Mapping[str, Any], objectives: Sequence[str], phases: Sequence[str]
) -> list[dict[str, Any]]:
  """FLOPs per example of each objective's step in each phase.

  Args:
    values: the config, as nested plain values; its batch size is replaced by
      one that is quick to compile (relations between examples then count
      fewer partners).
    objectives: expressions.
    phases: names out of the plan, e.g. 'stage_1', 'thaw'.

  Returns:
    A row per objective: 'objective', and the FLOPs by phase.

  Raises:
    UserError: unknown objective or phase.
  """
  device = jax.local_devices()[0]
  rows = []
  for objective in objectives:
    own = config.with_objective({**values, 'batch_size': BATCH}, objective)
    exp = experiment.build(own, devices=(device,))
    plan = {stage.name: stage for stage in exp.stages}
    row = {'objective': objective}
    for phase in phases:
      if phase not in plan:
        raise UserError(
          f'--phases: {phase!r} is not in the plan; allowed: {", ".join(plan)}'
        )
      spec = exp.spec(plan[phase], experiment.plan_augmentation(own))
      row[phase] = counting.step_flops(spec, BATCH, own['data']['train_size'])
    rows.append(row)
  return rows


def show(
  values: Mapping[str, Any],
  objectives: Sequence[str],
  phases: Sequence[str],
  console: rich.console.Console,
) -> None:
  """Prints `costs` as a table, each beside its ratio to kd's."""
  (base,) = costs(values, ['kd'], phases)
  table = summary.new_table('MFLOP per example and step, and against kd')
  table.add_column('objective')
  for phase in phases:
    table.add_column(phase, justify='right')
    table.add_column('x', justify='right')
  with console.status('compiling'):
    for objective in objectives:
      (row,) = costs(values, [objective], phases)
      cells = []
      for phase in phases:
        cells += [f'{row[phase] / 1e6:,.1f}', f'{row[phase] / base[phase]:.3f}']
      table.add_row(objective, *cells)
  console.print(table)
