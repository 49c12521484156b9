"""The method beside its controls: one teacher per seed, equal lengths.

A comparison goes on where it was stopped; with more seeds, orders or
objectives it runs what is new. The tables hold what it was called with.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console

from cbkd_jax import (
  compare_tables,
  config,
  experiment,
  workdir,
)
from cbkd_jax import objectives as methods
from cbkd_jax import shared_teacher as shared
from cbkd_jax.errors import NonFiniteLossError, UserError, nearest
from cbkd_jax.stages import ORDERS


def compare(
  values: Mapping[str, Any],
  directory: Path,
  *,
  seeds: int,
  orders: Sequence[str],
  console: rich.console.Console,
  objectives: Sequence[str] = (),
  interrupted: Callable[[], bool] = lambda: False,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs every order with every seed, and writes the tables.

  Args:
    values: the config, as nested plain values; its `order` is replaced, its
      `seed` is the first one.
    directory: where the runs go, as `seed_S/ORDER` or
      `seed_S/OBJECTIVE/ORDER`, and compare.md and compare.json.
    seeds: how many, consecutive.
    orders: which orders; a seed's first run trains its teacher.
    console: where to show how it goes.
    objectives: expressions that replace the config's, one after the other;
      none: the config's own.
    interrupted: whether to save and stop.
    command: the command line, which the workdir of each run keeps.

  Returns:
    What compare.json holds: 'rows', one per run, and 'teachers'.

  Raises:
    UserError: wrong input, found before anything is run.
    NonFiniteLossError: a run diverged; the others were run all the same.
  """
  for order in orders:
    if order not in ORDERS:
      raise UserError(
        f'--orders: {order!r} is not known{nearest(order, ORDERS)}; '
        f'allowed: {", ".join(ORDERS)}'
      )
  if not orders or len(set(orders)) < len(orders):
    raise UserError(f'--orders={",".join(orders)}: must name each order once')
  if seeds < 1:
    raise UserError(f'--seeds={seeds}: must be at least 1')
  spelled: dict[str, str] = {}
  for objective in objectives:
    full = str(methods.parse(objective, '--objectives'))
    if full in spelled:
      raise UserError(
        f'--objectives: {spelled[full]!r} and {objective!r} are the same'
      )
    spelled[full] = objective
  if objectives and 'scratch' in orders:
    raise UserError(
      '--orders: scratch has no objective to compare; leave it out beside '
      '--objectives'
    )
  runs = _plan(values, directory, seeds, orders, objectives)
  for run in runs:
    config.check(run.values)
  student = shared.find(directory, runs[0].values)
  for run in runs:
    experiment.build(run.values, found=student)
    workdir.check_config(run.directory, run.values, config.defaults())
  diverged = []
  for number, run in enumerate(runs, start=1):
    console.rule(f'{number} of {len(runs)}: {run.title}')
    try:
      student = shared.find(directory, run.values, student)
      shared.run(run, student, console, interrupted, command)
    except NonFiniteLossError as error:
      diverged.append(f'{run.title}: {error}')
      console.print(diverged[-1], highlight=False)
    result = _collect(runs)
    if result['rows']:
      workdir.write_json(directory / 'compare.json', result)
      finished = [r.directory / 'summary.json' for r in runs]
      found = workdir.read_json(next(f for f in finished if f.exists()))
      (directory / 'compare.md').write_text(
        compare_tables.markdown(values, found, result, objectives)
      )
  if result['rows']:
    compare_tables.show(values, result, objectives, console)
  if diverged:
    raise NonFiniteLossError('; '.join(diverged))
  return result


def _plan(
  values: Mapping[str, Any],
  directory: Path,
  seeds: int,
  orders: Sequence[str],
  objectives: Sequence[str],
) -> list[shared.RunPlan]:
  """Every run, seed by seed."""
  runs = []
  for seed in range(values['seed'], values['seed'] + seeds):
    seed_directory = directory / f'seed_{seed}'
    for objective in objectives or [None]:
      own = {**values, 'seed': seed}
      parent, title = seed_directory, ''
      if objective is not None:
        own = config.with_objective(own, objective)
        parent, title = seed_directory / folder(objective), f'{objective}, '
      for order in orders:
        run = shared.RunPlan(
          {**own, 'order': order},
          parent / order,
          seed_directory,
          f'{title}{order}, seed {seed}',
        )
        runs.append(run)
  return runs


def folder(objective: str) -> str:
  """A directory's name for an expression: itself where it is a mere name."""
  objective = ''.join(objective.split())
  if objective.isidentifier():
    return objective
  name = re.sub(r'[^A-Za-z0-9.]+', '_', objective).strip('_')[:40]
  return f'{name}-{zlib.crc32(objective.encode()):08x}'


def _collect(runs: Sequence[shared.RunPlan]) -> dict[str, Any]:
  """The rows of all runs that are finished, and their teachers."""
  rows, teachers = [], {}
  for values, directory, _, _ in runs:
    path = directory / 'summary.json'
    if not path.exists():
      continue
    found = workdir.read_json(path)
    rows.append(_row(found, values))
    teachers[values['seed']] = {
      'seed': values['seed'],
      'accuracy': found['teacher']['accuracy'],
      'params': found['teacher']['params'],
    }
  return {'rows': rows, 'teachers': list(teachers.values())}


def _row(found: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
  stages = found['stages']
  return {
    'order': values['order'],
    'objective': (
      'ce' if values['order'] == 'scratch' else _last_objective(values)
    ),
    'seed': values['seed'],
    'accuracy': found['student']['accuracy'],
    'agreement': found['student']['agreement'],
    'steps': sum(stage['steps'] for stage in stages),
    'seconds': sum(stage['seconds'] for stage in stages),
    'params': found['student']['params'],
  }


def _last_objective(values: Mapping[str, Any]) -> str:
  return values['thaw']['objective'] or values['objective']
