"""The files of a run besides its checkpoints: config, lock, atomic JSON.

A workdir is on a disk, or in a bucket and then without a lock: who starts two
processes on one there mixes up two runs.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from cbkd_jax import buckets
from cbkd_jax.errors import UserError

# Fields that change no number of a run, but for rounding: they may differ when
# it is resumed.
_FREE_FIELDS = (
  *('compilation_cache', 'data.workers', 'remat'),
  *('mesh.data', 'mesh.model'),
)

PROBE = 'probe.json'  # what `compression.probe` has measured
BUDGET = 'budget.json'  # the keep ratios that `compression.target` led to

_COMMAND = 'command.txt'
_MARK = '.begun'  # stands beside phases that are being copied


def write_json(path: Path, value: Any) -> None:
  """Writes all of the file or nothing of it, and is on disk afterwards."""
  _write(path, json.dumps(value, indent=2) + '\n')


def _write(path: Path, text: str) -> None:
  if buckets.is_bucket(path):
    path.write_text(text)
    return
  temporary = path.with_name(f'.{path.name}.tmp')
  with temporary.open('w') as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_json(path: Path) -> Any:
  """The file's value.

  Raises:
    UserError: it is not JSON, or can't be read.
  """
  try:
    return json.loads(path.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path} is not valid JSON: {error}') from None
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}') from None


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds the workdir for this process; a dead process's lock is void.

  The operating system drops the lock with the process that holds it. Nobody
  would in a bucket: there is no lock there.

  Raises:
    UserError: another process has it.
  """
  if buckets.is_bucket(workdir):
    yield
    return
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = (workdir / '.lock').open('a+')
  except OSError as error:
    raise UserError(f'workdir = {workdir}: {error.strerror}') from None
  with file:
    _take(workdir, file)
    file.truncate(0)
    file.write(f'{os.getpid()}\n')
    file.flush()
    yield


def check_free(workdir: Path) -> None:
  """Refuses a workdir that another process holds; writes nothing.

  Raises:
    UserError: naming the process.
  """
  if not buckets.is_bucket(workdir) and (workdir / '.lock').exists():
    with (workdir / '.lock').open() as file:
      _take(workdir, file)


def _take(workdir: Path, file: IO[str]) -> None:
  """Takes the lock, which closing the file gives back."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.seek(0)
    raise UserError(
      f'workdir = {workdir}: in use by process {file.read().strip()}'
    ) from None


def check_config(
  workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> bool:
  """Whether the workdir already has a run of this very config.

  Args:
    workdir: may not exist.
    config: the resolved config, as nested plain values. Fields that change
      no number of a run are not compared.
    defaults: what a field counts as that an older version did not know.

  Raises:
    UserError: it has another config; the message names what differs. Or it
      holds other files and no config.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'workdir = {workdir}: is a file, must be a directory')
  path = workdir / 'config.json'
  if not path.exists():
    others = {p.name for p in workdir.iterdir()} if workdir.exists() else set()
    others -= {'.lock', '.config.json.tmp', PROBE, f'.{PROBE}.tmp'}
    others -= {BUDGET, f'.{BUDGET}.tmp'}
    # With the mark, they are what a start that was cut short left behind.
    if others and _MARK not in others:
      raise UserError(
        f'workdir = {workdir}: holds {sorted(others)[0]!r} but no '
        'config.json; give a directory that is new or empty'
      )
    return False
  old = {**flat(defaults), **flat(read_json(path))}
  new = flat(json.loads(json.dumps(config)))
  different = [
    f'{field} ({old.get(field)!r} there, {new.get(field)!r} here)'
    for field in sorted({*old, *new})
    if field not in _FREE_FIELDS and old.get(field) != new.get(field)
  ]
  if different:
    raise UserError(
      f'workdir = {workdir}: holds a run of another config; different: '
      + ', '.join(different)
    )
  return True


def compared(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config's fields by dotted name, without those that may differ."""
  return {k: v for k, v in flat(config).items() if k not in _FREE_FIELDS}


def flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """A config's fields by dotted name, as JSON has them, without unset ones."""
  found = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      found |= flat(value, f'{prefix}{key}.')
    elif value is not None:  # unset is the same as absent
      found[prefix + key] = json.loads(json.dumps(value))
  return found


def add_command(workdir: Path, command: str) -> None:
  """Keeps a command that the run was begun or continued with.

  Args:
    workdir: has the run's config.json.
    command: one line. What is the last one already is not added.
  """
  before = f'\n{commands(workdir) or ""}'
  if not before.endswith(f'\n{command}'):
    _write(workdir / _COMMAND, f'{before}\n{command}\n'.lstrip())


def commands(workdir: Path) -> str | None:
  """A line per command of the run, the first one first.

  None where none was kept: by an older version, or of a run from Python.
  """
  path = workdir / _COMMAND
  return path.read_text().rstrip('\n') if path.exists() else None


def begin(
  workdir: Path,
  config: Mapping[str, Any],
  source: Path | None = None,
  phases: Sequence[str] = (),
  budget: Mapping[str, Any] | None = None,
  probe: Mapping[str, Any] | None = None,
) -> None:
  """Makes a new run's workdir; cut short at any point it can be done again.

  Args:
    workdir: exists and is locked; has no config.json.
    config: the resolved config; is written last.
    source: another run's workdir, whose finished phases are copied, and its
      log, which a resume cuts back to their end.
    phases: names of the phases to take.
    budget: what budget.json is to hold; None: there is none.
    probe: likewise probe.json.

  Raises:
    UserError: the bucket takes nothing.
  """
  mark = workdir / _MARK
  if mark.exists():
    for path in workdir.iterdir():
      if path.is_dir():
        buckets.remove_tree(path)
      elif path.name not in ('.lock', _MARK):
        path.unlink()
  if phases:
    with buckets.told(workdir, 'workdir'):
      mark.touch()
    for phase in phases:
      buckets.copy_tree(source / phase, workdir / phase)
    log = source / 'metrics.jsonl'
    if log.exists():
      (workdir / log.name).write_bytes(log.read_bytes())
  with buckets.told(workdir, 'workdir'):
    for name, value in ((BUDGET, budget), (PROBE, probe)):
      if value is not None:
        write_json(workdir / name, value)
    write_json(workdir / 'config.json', config)
  mark.unlink(missing_ok=True)
