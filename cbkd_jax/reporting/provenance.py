"""What a run was made with: its command, its config beside the defaults."""

import datetime
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from cbkd_jax import config, workdir
from cbkd_jax.reporting.record import Record

_LONG = 60  # characters of a line on a phone
# Flags that say where the author's files are, and what others read there.
_PLACES = {
  'workdir': 'WORKDIR',
  'from_workdir': 'OTHER_WORKDIR',
  'config.data.dir': 'DATA',
  'config.teacher.checkpoint': 'TEACHER',
}


class Field(NamedTuple):
  """A field of the config; `default` is None where it is the default."""

  name: str
  value: str
  default: str | None


def fields(record: Record) -> list[Field]:
  """All fields, those first that are not the default."""
  own = _flat(record.config)
  default = _flat(config.defaults())
  found = [
    Field(
      name,
      _text(value),
      None if _same(value, default.get(name)) else _text(default.get(name)),
    )
    for name, value in own.items()
  ]
  return sorted(found, key=lambda field: (field.default is None, field.name))


def command(record: Record, *, public: bool = False) -> tuple[str, bool]:
  """The command of a run, and whether it is the one that was given.

  Where none was kept it is one that has the same config.

  Args:
    record: the run's.
    public: leave out where its author's files are.
  """
  if record.command:
    lines = record.command.splitlines()
    return '\n'.join(_folded(line, public) for line in lines), True
  default = _flat(config.defaults())
  parts = [
    'python -m cbkd_jax.train --config=configs/default.py',
    _flag('workdir', str(record.directory), public),
  ]
  for name, value in _flat(record.config).items():
    if not _same(value, default.get(name)):
      parts.append(_flag(f'config.{name}', _text(value), public))
  return ' \\\n  '.join(parts), False


def _flag(name: str, value: str, public: bool) -> str:
  value = _PLACES.get(name, value) if public else value
  return f'--{name}={shlex.quote(value)}'


def _without_places(parts: Sequence[str]) -> list[str]:
  """Arguments, --flag=value or --flag value, as others are to see them."""
  found: list[str] = []
  place = None  # of the flag before, whose value comes now
  for part in parts:
    name, equals, _ = part.removeprefix('--').partition('=')
    own = _PLACES.get(name) if part.startswith('--') else None
    if own and equals:
      found.append(f'--{name}={own}')
    else:
      found.append(place or part)
    place = None if equals else own
  return found


def _folded(command: str, public: bool) -> str:
  """A long command with an argument a line."""
  try:
    parts = shlex.split(command)
  except ValueError:  # of a shell that we don't know
    return 'not shown' if public else command
  if public:
    parts = _without_places(parts)
    command = shlex.join(parts)
  first = next((i for i, p in enumerate(parts) if p.startswith('--')), None)
  if len(command) < _LONG or not first:
    return command
  start = shlex.join(parts[:first])
  return ' \\\n  '.join([start, *map(shlex.quote, parts[first:])])


def written(record: Record) -> str | None:
  """When a run's summary was written, in UTC; None of an unfinished one."""
  path = record.directory / 'summary.json'
  if record.summary is None or not path.exists():
    return None
  found = path.stat()  # a bucket's has no `st_mtime`
  seconds = getattr(found, 'st_mtime', None) or found.mtime
  when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
  return f'{when:%Y-%m-%d %H:%M} UTC'


def facts(record: Record) -> list[tuple[str, str]]:
  """Where and with what a run ran, by name."""
  found = [('workdir', str(record.directory))]
  summary = record.summary
  if summary is None:
    return found
  device, data = summary['device'], summary['dataset']
  found += [
    ('summary written', written(record) or ''),
    (
      'device',
      f'{device["count"]} x {device["kind"]}, {device["processes"]} process'
      + 'es' * (device['processes'] != 1),
    ),
    (
      'data',
      f'{data["name"]}: {data["train"]:,} train, {data["validation"]:,} '
      f'validation, {data["test"]:,} test',
    ),
    ('seed', str(summary['seed'])),
  ]
  if 'wall' in summary:
    seconds = sum(summary['wall'].values())
    found.append(('time of the last process', f'{seconds:,.0f} s'))
  return [*found, *summary['versions'].items()]


def _flat(values: Any) -> dict[str, Any]:
  """By dotted name; fields without a value are left out."""
  return workdir.flat(values)


def _same(one: Any, other: Any) -> bool:
  return one == other and isinstance(one, bool) == isinstance(other, bool)


def _text(value: Any) -> str:
  """As it is written on the command line."""
  if isinstance(value, list):
    return repr(tuple(value))
  return str(value)
