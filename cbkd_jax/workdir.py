"""The files of a run besides its checkpoints: config, lock, atomic JSON."""

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbkd_jax.errors import UserError


def write_json(path: Path, value: Any) -> None:
  """Writes all of the file or nothing of it, and is on disk afterwards."""
  temporary = path.with_name(f'.{path.name}.tmp')
  with temporary.open('w') as file:
    json.dump(value, file, indent=2)
    file.write('\n')
    file.flush()
    os.fsync(file.fileno())
  temporary.replace(path)


def read_json(path: Path) -> Any:
  """The file's value.

  Raises:
    UserError: it is not JSON.
  """
  try:
    return json.loads(path.read_text())
  except (json.JSONDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'{path} is not valid JSON: {error}') from None


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
  """Holds the workdir for this process; a dead process's lock is void.

  The operating system drops the lock with the process that holds it.

  Raises:
    UserError: another process has it.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / '.lock').open('a+') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise UserError(
        f'workdir = {workdir}: in use by process {file.read().strip()}'
      ) from None
    file.truncate(0)
    file.write(f'{os.getpid()}\n')
    file.flush()
    yield


def check_free(workdir: Path) -> None:
  """Refuses a workdir that another process holds; writes nothing.

  Raises:
    UserError: naming the process.
  """
  if (workdir / '.lock').exists():
    with locked(workdir):
      pass


def check_config(
  workdir: Path, config: Mapping[str, Any], defaults: Mapping[str, Any]
) -> bool:
  """Whether the workdir already has a run of this very config.

  Args:
    workdir: may not exist.
    config: the resolved config, as nested plain values.
    defaults: what a field counts as that an older version did not know.

  Raises:
    UserError: it has another config; the message names what differs. Or it
      holds other files and no config.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'workdir = {workdir}: is a file, must be a directory')
  path = workdir / 'config.json'
  if not path.exists():
    others = set(os.listdir(workdir)) - {'.lock'} if workdir.exists() else ()
    if others:
      raise UserError(
        f'workdir = {workdir}: holds {sorted(others)[0]!r} but no '
        'config.json; give a directory that is new or empty'
      )
    return False
  old = {**_flat(defaults), **_flat(read_json(path))}
  new = _flat(json.loads(json.dumps(config)))
  different = [
    f'{field} ({old.get(field)!r} there, {new.get(field)!r} here)'
    for field in sorted({*old, *new})
    if old.get(field) != new.get(field)
  ]
  if different:
    raise UserError(
      f'workdir = {workdir}: holds a run of another config; different: '
      + ', '.join(different)
    )
  return True


def _flat(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  found = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      found |= _flat(value, f'{prefix}{key}.')
    elif value is not None:  # unset is the same as absent
      found[prefix + key] = json.loads(json.dumps(value))
  return found


def adopt(source: Path, workdir: Path, phases: Sequence[str]) -> None:
  """Copies another run's finished phases and the log lines up to their end.

  Args:
    source: the other run's workdir.
    workdir: of the new run; exists, without these phases.
    phases: names of the phases to take.
  """
  for phase in phases:
    temporary = workdir / f'.{phase}.tmp'
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source / phase, temporary)
    temporary.replace(workdir / phase)
  log = source / 'metrics.jsonl'
  if log.exists():
    shutil.copyfile(log, workdir / 'metrics.jsonl')
