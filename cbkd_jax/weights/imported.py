"""An imported teacher's directory, and the way back from it.

It holds `state/`, an orbax checkpoint of the network's variables, and
`imported.json`, which says what they are and where they come from. It appears
as a whole: what fails leaves nothing behind.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax import blocks, buckets, checkpoints, models, workdir
from cbkd_jax.blocks import Variables
from cbkd_jax.errors import UserError
from cbkd_jax.weights import naming

_NOTE = 'imported.json'


def check_new(out: Path) -> None:
  """Refuses a directory that holds something.

  Raises:
    UserError: naming it.
  """
  if out.exists() and not (out.is_dir() and not any(out.iterdir())):
    raise UserError(f'--out={out}: exists and is not an empty directory')


def save(out: Path, variables: Variables, described: Mapping[str, Any]) -> None:
  """Writes a teacher's directory, all of it or nothing.

  Args:
    out: is new or empty; may be in a bucket.
    variables: the network's.
    described: what `imported.json` is to say, plain values.

  Raises:
    UserError: it can't be written.
  """
  check_new(out)
  in_bucket = buckets.is_bucket(out)
  try:
    if not in_bucket:
      out.parent.mkdir(parents=True, exist_ok=True)
    beside = None if in_bucket else out.parent
    with tempfile.TemporaryDirectory(prefix='.importing-', dir=beside) as name:
      whole = Path(name) / 'teacher'
      whole.mkdir()
      checkpoints.write_variables(whole / 'state', variables)
      workdir.write_json(whole / _NOTE, dict(described))
      if in_bucket:
        with buckets.told(out, '--out'):
          buckets.copy_tree(whole, out)
      else:
        whole.rename(out)
  except OSError as error:
    raise UserError(f'--out={out}: {error.strerror or error}') from None


def description(directory: Path) -> dict[str, Any] | None:
  """What `imported.json` says; None where `directory` is no import's.

  Raises:
    UserError: it can't be read.
  """
  path = directory / _NOTE
  return workdir.read_json(path) if path.exists() else None


def state_dict(
  directory: str, names: str | None = None
) -> dict[str, np.ndarray]:
  """A teacher as a state dict of PyTorch, types and names as in its file.

  Args:
    directory: an import's, or a run's workdir.
    names: whose names; default those of the file, or the model's first.

  Returns:
    Arrays in torch's layout by torch's names; without 'num_batches_tracked'.

  Raises:
    UserError: there is no teacher, or its model knows no such names.
  """
  source = buckets.path(directory, '--from')
  known = description(source) or _of_run(source)
  image_shape = tuple(known['image_shape'])
  architecture = models.build(known['model'], known['num_classes'], image_shape)
  namings = naming.namings(architecture, known['model'])
  if names is not None:
    naming.check(names, namings)
  shapes = blocks.shapes(architecture.network(), image_shape)
  variables = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(directory), shapes
  )
  names = names or known.get('names', namings[0])
  entries = naming.entries(architecture, shapes, names)
  return naming.to_state_dict(entries, variables, known['dtypes'])


def _of_run(source: Path) -> dict[str, Any]:
  """The same of a run's workdir.

  Raises:
    UserError: it is none.
  """
  path = source / 'config.json'
  if not path.exists():
    raise UserError(
      f'--from={source}: neither the directory of an import nor the workdir '
      'of a run'
    )
  config = workdir.read_json(path)
  return {
    'model': config['teacher']['model'],
    'num_classes': config['data']['classes'],
    'image_shape': config['data']['image_shape'],
    'dtypes': {},
  }
