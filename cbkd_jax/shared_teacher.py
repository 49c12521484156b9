"""Runs that share a teacher per seed: those of a comparison, of a sweep."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import rich.console

from cbkd_jax import (
  budget_search,
  checkpoints,
  config,
  experiment,
  training,
  workdir,
)
from cbkd_jax.budget_search import Found
from cbkd_jax.data.wanted import OWN


class RunPlan(NamedTuple):
  """One run of a comparison.

  Attributes:
    values: its config.
    directory: its workdir.
    seed_directory: that of all runs of its seed, which share a teacher.
    title: for the terminal.
  """

  values: Mapping[str, Any]
  directory: Path
  seed_directory: Path
  title: str


def find(
  directory: Path, values: Mapping[str, Any], already: Found | None = None
) -> Found | None:
  """The one student of all runs of a config, if a target asks for it.

  Args:
    directory: of all runs, `seed_S/...`.
    values: the config.
    already: what an earlier call has found.

  Returns:
    The student that a run there has; with `compression.probe` one that was
    probed, if there is any. Else `already`, else a new one.

  Raises:
    UserError: the target is out of reach.
  """
  fields, there = values['compression'], []
  if not fields['target'] or (already and not fields['probe']):
    return already
  for pattern in '*', '*/*':
    for path in sorted(directory.glob(f'seed_*/{pattern}/{workdir.BUDGET}')):
      there.append(budget_search.stored(path.parent, values))
  # Of a run that has yet to probe it is what would be without.
  there = sorted(filter(None, there), key=lambda found: not found.probed)
  if there and (there[0].probed or not already):
    return there[0]
  return already or experiment.build(values).found


def run(
  plan: RunPlan,
  found: Found | None,
  console: rich.console.Console,
  interrupted: Callable[[], bool],
  command: str | None = None,
) -> None:
  """Runs what is not finished, with a teacher that this seed has already."""
  values, directory, seed_directory, _ = plan
  if (directory / 'summary.json').exists():
    console.print('already finished')
    return
  # Copied, not named in the config: the runs stand on their own, in whatever
  # order they are run and wherever they are moved.
  source = None
  if not (directory / 'config.json').exists():
    source = next(
      (
        other.parent
        for other in _teachers(seed_directory, values)
        if checkpoints.is_finished(other)
      ),
      None,
    )
  if source is not None:
    with workdir.locked(directory):
      workdir.begin(
        directory,
        values,
        source,
        ['teacher'],
        budget=found and dataclasses.asdict(found),
        probe=_probed(source, values),
      )
  training.train_and_evaluate(
    values,
    directory,
    console=console,
    interrupted=interrupted,
    found=found,
    command=command,
  )


def _teachers(seed_directory: Path, values: Mapping[str, Any]) -> list[Path]:
  """A seed's teachers that this config would train so, probed first."""
  own = _of_teacher(values)
  found = [
    path
    for pattern in ('*/teacher', '*/*/teacher')
    for path in seed_directory.glob(pattern)
    if _of_teacher(workdir.read_json(path.parent / 'config.json')) == own
  ]
  return sorted(
    found, key=lambda path: (not _probed(path.parent, values), path)
  )


def _probed(
  directory: Path, values: Mapping[str, Any]
) -> dict[str, Any] | None:
  """What a run has measured of its teacher, if it is what this would."""
  path = directory / workdir.PROBE
  there = workdir.read_json(directory / 'config.json')
  own, other = (
    {**workdir.flat(config.defaults()), **workdir.flat(v)}
    for v in (values, there)
  )
  measured = ('compression.', 'inherit')
  free = ('compression.keep', 'compression.target')
  same = all(
    own.get(field) == other.get(field)
    for field in {*own, *other}
    if field.startswith(measured) and field not in free
  )
  return workdir.read_json(path) if same and path.exists() else None


def _of_teacher(values: Mapping[str, Any]) -> dict[str, Any]:
  """The fields that a teacher depends on, defaults where it has none."""
  groups = ('data', 'teacher')
  names = (
    'seed',
    'batch_size',
    'micro_batches',
    'compute_dtype',
    'sync_batch_norm',
  )
  fields = {**workdir.flat(config.defaults()), **workdir.flat(values)}
  # Where prepared data lie does not matter; of a user's own it is what they
  # are.
  own = fields['data.name'] in OWN
  return {
    field: value
    for field, value in fields.items()
    if field.partition('.')[0] in (*groups, *names)
    and (own or field != 'data.dir')
  }
