"""What the files of a workdir say of a run, finished or not."""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cbkd_jax import buckets, checkpoints, workdir
from cbkd_jax import config as config_
from cbkd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
  """A run as its workdir tells it; nothing is computed.

  Attributes:
    directory: the workdir.
    name: short, for figures and tables; of several records no two are alike.
    config: every field, as nested plain values; what an older version lacks
      is default.
    summary: what summary.json holds; None while the run is not finished.
    metrics: the rows of metrics.jsonl, in their order. Each has 'stage' (the
      phase: 'teacher', 'stage_1', ..., 'thaw'; 'stage_1_pre' where a method
      prepares) and 'step' (taken in the phase). Rows of training have
      'examples', 'loss', 'accuracy' (of the batch), 'grad_norm',
      'learning_rate' and each term of the objective by its key ('ce', 'kd'):
      *unweighted*, so 'loss' is their sum with the expression's weights. What
      a term logs beside its value is 'term/name'. The last row of a phase has
      'test_accuracy', 'test_cross_entropy', in all phases but the teacher's
      'test_agreement' and 'test_kl_to_teacher', with more than ten classes
      'test_top_5_accuracy', and the same of a validation slice, as
      'validation_...'.
    phases: the results of the phases that are done, in the order in which
      they are run, the teacher first: 'name', 'steps', 'accuracy',
      'cross_entropy', 'loss' (the last step's), 'seconds', 'compile_seconds',
      'examples_per_second', 'warning' (None or a line), but for the teacher
      'agreement', 'kl_to_teacher', and 'trained_blocks' where the run is
      finished.
    finished: whether the run is.
    command: the command that the run was begun with; each different one that
      it was continued with on a line of its own. None: an older version's run,
      or one that no command has begun.
  """

  directory: Path
  name: str
  config: Mapping[str, Any]
  summary: Mapping[str, Any] | None
  metrics: Sequence[Mapping[str, Any]]
  phases: Sequence[Mapping[str, Any]]
  finished: bool
  command: str | None

  @property
  def done(self) -> tuple[str, ...]:
    """The names of the phases that are done."""
    return tuple(phase['name'] for phase in self.phases)

  @property
  def versions(self) -> Mapping[str, str] | None:
    """Of Python and libraries, by name; None while it is not finished."""
    return self.summary and self.summary['versions']


def read(directory: Path, name: str | None = None) -> Record:
  """The record of one run.

  Args:
    directory: its workdir; may be in a bucket, and in use.
    name: default the directory's.

  Raises:
    UserError: it is no workdir, or a file of it can't be read.
  """
  if not (directory / 'config.json').exists():
    raise UserError(
      f'{directory}: holds no run; must be a workdir of cbkd_jax.train'
    )
  found = workdir.read_json(directory / 'config.json')
  summary = None
  if (directory / 'summary.json').exists():
    summary = workdir.read_json(directory / 'summary.json')
  if summary:
    phases = [{'name': 'teacher', **summary['teacher']}, *summary['stages']]
  else:
    phases = _results(directory)
  return Record(
    directory=directory,
    name=name or _parts(directory)[-1],
    config=config_.with_defaults(found),
    summary=summary,
    metrics=_rows(directory, summary is not None),
    phases=phases,
    finished=summary is not None,
    command=workdir.commands(directory),
  )


def read_all(directories: Sequence[Path]) -> list[Record]:
  """The records of workdirs, each of one run, of `compare` or of `pareto`.

  Args:
    directories: the workdirs; of one with several runs all are taken, by
      seed.

  Returns:
    The records; their names are what their paths do not have in common:
    'joint', with several seeds 'seed_0/joint'.

  Raises:
    UserError: a directory holds no run, is named twice, or a file can't be
      read.
  """
  found = [run for directory in directories for run in _runs(directory)]
  places = [_parts(run) for run in found]
  for i, run in enumerate(found):
    if places[i] in places[:i]:
      raise UserError(f'--workdir: {run} is named twice')
  return [read(*pair) for pair in zip(found, _names(found))]


def _runs(directory: Path) -> list[Path]:
  """The workdirs in a directory that is one, or holds those of many runs."""
  if (directory / 'config.json').exists():
    return [directory]
  found = [
    path.parent
    for pattern in ('seed_*/*', 'seed_*/*/*')
    for path in directory.glob(f'{pattern}/config.json')
  ]
  if not found:
    raise UserError(
      f'{directory}: holds no run; must be a workdir of cbkd_jax.train, '
      'compare or pareto'
    )
  return sorted(found, key=_by_number)


def _by_number(path: Path) -> list[Any]:
  """So that seed_10 comes after seed_9."""
  parts = re.split(r'(\d+)', str(path))
  return [int(part) if part.isdigit() else part for part in parts]


def _parts(directory: Path) -> list[str]:
  """The names in a path, from the root."""
  if not buckets.is_bucket(directory):
    directory = directory.resolve()
  return [part for part in str(directory).split('/') if part]


def _names(directories: Sequence[Path]) -> list[str]:
  """What tells the directories apart; one alone has its own name."""
  paths = [_parts(directory) for directory in directories]
  common = 0
  while all(
    len(path) > common + 1 and path[common] == paths[0][common]
    for path in paths
  ):
    common += 1
  return ['/'.join(path[common:]) for path in paths]


def _rows(directory: Path, finished: bool) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl."""
  path = directory / 'metrics.jsonl'
  if not path.exists():
    return []
  try:
    lines, rows = path.read_text().splitlines(), []
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'{path}: can not be read: {error}') from None
  for number, line in enumerate(lines, start=1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as error:
      if number < len(lines):
        raise UserError(
          f'{path} is damaged in line {number}: {error}'
        ) from None
      # What is being written, or was when the machine went down.
  if finished:
    return rows
  # A run that took phases of another one has all of its log until it begins
  # a phase of its own.
  begun = {
    stage
    for stage in {r['stage'] for r in rows}
    if (directory / stage).is_dir()
  }
  return [row for row in rows if row['stage'] in begun]


def _results(directory: Path) -> list[dict[str, Any]]:
  """The results of the phases that are done, of a run that is not."""
  names = [
    path.name
    for path in directory.iterdir()
    if path.is_dir() and any(d.name.isdigit() for d in path.iterdir())
  ]
  found = []
  for name in sorted(names, key=_place):
    if results := checkpoints.results(directory / name):
      found.append({'name': name, **results})
  return found


def _place(phase: str) -> tuple[int, int, bool]:
  """Where in a run a phase comes; what prepares a stage comes before it."""
  name = phase.removesuffix('_pre')
  numbered = re.fullmatch(r'stage_(\d+)', name)
  number = int(numbered[1]) if numbered else 0
  kind = 0 if name == 'teacher' else 1 if numbered else 2
  return kind, number, name == phase
