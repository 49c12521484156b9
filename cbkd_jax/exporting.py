"""Writes a finished run's network to files, each checked before it is there.

A file is written into a directory of unchecked ones, loaded anew and run on
test images. Only if it agrees with the network that the run has saved does it
get its place, and a JSON that says all about it.
"""

import contextlib
import dataclasses
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import rich.console

import cbkd_jax
from cbkd_jax import (
  blocks,
  buckets,
  deployed,
  experiment,
  exported,
  faithful,
  finished_run,
  formats,
  summary,
  workdir,
)
from cbkd_jax.data.framing import Framing
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError
from cbkd_jax.faithful import Reference
from cbkd_jax.quantization import CALIBRATION_EXAMPLES

_UNCHECKED = '.unchecked'
_COLUMNS = (
  *('size', 'top-1\nagreement', 'max\n|Δlogit|'),
  *('accuracy\nbefore', 'accuracy\nafter'),
)
_LIBRARIES = ('jax', 'jaxlib', 'flax')


@dataclasses.dataclass(frozen=True)
class Request:
  """What is to be exported, and how.

  Attributes:
    formats: names out of `formats.FORMATS`.
    of: 'student' or 'teacher'.
    normalise: whether the files normalise their images themselves.
    fold: multiply normalisations into the layers before them.
    quantize: '' or 'int8'.
    calibration: how many train images int8 is calibrated by.
    examples: test images that each file is run on, see `faithful.chosen`.
    tolerance: see `faithful.judge`.
    data_dir: where the data are, as data.dir; None: as the config says.
  """

  formats: tuple[str, ...]
  of: str = 'student'
  normalise: bool = True
  fold: bool = True
  quantize: str = ''
  calibration: int = CALIBRATION_EXAMPLES
  examples: int | None = None
  tolerance: float | None = None
  data_dir: str | None = None


@dataclasses.dataclass(frozen=True)
class Task:
  """A request with what it takes to write and check a file.

  Attributes:
    request: what was asked for.
    network: as it is to be written.
    params: trainable parameters of the network before anything was folded.
    reference: what files are compared with: the network, nothing folded.
    calibration: images of the train split, uint8; of int8 only.
    framing: what evaluation does with an image.
  """

  request: Request
  network: Deployed
  params: int
  reference: Reference
  calibration: np.ndarray | None
  framing: Framing


def export(
  directory: Path, request: Request, console: rich.console.Console
) -> list[Path]:
  """Writes `directory/export/`; a file there is replaced by a checked one.

  Args:
    directory: the run's workdir.
    request: what is wanted.
    console: gets a table of the files.

  Returns:
    The files.

  Raises:
    UserError: no finished run, no data, a library is missing; or a file does
      not agree with the network and was not kept, while the others were.
  """
  formats.require(request.formats, int8=bool(request.quantize))
  if buckets.is_bucket(directory):
    raise UserError(
      f'--workdir={directory}: files are exported to a disk; copy the run'
    )
  task = _prepare(directory, request)
  table = summary.new_table(
    f'{directory / "export"}, {len(task.reference.labels):,} test images'
  )
  table.add_column('file', no_wrap=True)
  for name in _COLUMNS:
    table.add_column(name, justify='right', no_wrap=True)
  found, sizes, failures = [], [], []
  with workdir.locked(directory), _unchecked(directory / 'export') as unchecked:
    for name in request.formats:
      path = directory / 'export' / _file_name(request, formats.module(name))
      try:
        info = _write(task, name, unchecked / path.name)
      except faithful.Unfaithful as error:
        failures.append(f'{path.name} {error}')
        continue
      _publish(unchecked / path.name, path, info)
      found.append(path)
      table.add_row(*_row(info))
      if 'float32_bytes' in (info['quantization'] or ()):
        sizes.append(_size_in_float(info))
  if found:
    console.print(table)
  for line in sizes:
    console.print(line, highlight=False, markup=False, soft_wrap=True)
  if failures:
    raise UserError(f'not kept: {"; ".join(failures)}')
  return found


def _prepare(directory: Path, request: Request) -> Task:
  """Reads the network and the data, and runs the network on them."""
  values = finished_run.read_config(directory)
  build = {'student': deployed.student_of, 'teacher': deployed.teacher_of}
  saved = build[request.of](directory, normalise=True, fold=False)
  network = build[request.of](
    directory, normalise=request.normalise, fold=request.fold
  )
  fields = values['data']
  if request.data_dir is not None:
    fields = {**fields, 'dir': request.data_dir}
  dataset = experiment.load_data({**values, 'data': fields})
  images, labels = faithful.chosen(dataset.test, request.examples)
  run = jax.jit(saved.function)
  return Task(
    request=request,
    network=network,
    params=blocks.count_params(saved.arrays['params']),
    reference=Reference(
      of=request.of,
      dataset=Wanted.of(fields).public_name,
      split=fields['test_split'],
      images=images,
      labels=labels,
      logits=faithful.logits_of(
        lambda x: np.asarray(run(saved.arrays, x)), images
      ),
    ),
    calibration=faithful.spread(dataset.train, request.calibration)[0]
    if request.quantize
    else None,
    framing=Framing.of(fields),
  )


@contextlib.contextmanager
def _unchecked(directory: Path) -> Iterator[Path]:
  """A new directory in `directory`; nothing is left of it."""
  unchecked = directory / _UNCHECKED
  shutil.rmtree(unchecked, ignore_errors=True)  # of one that was killed
  try:
    unchecked.mkdir(parents=True)
  except OSError as error:
    raise UserError(f'{directory}: {error.strerror}') from error
  try:
    yield unchecked
  finally:
    shutil.rmtree(unchecked, ignore_errors=True)
    with contextlib.suppress(OSError):  # other files are there
      directory.rmdir()


def _file_name(request: Request, module: ModuleType) -> str:
  scheme = f'_{request.quantize}' if request.quantize else ''
  return f'{request.of}{scheme}{module.SUFFIX}'


def _write(task: Task, name: str, path: Path) -> dict[str, Any]:
  """Writes a file, and runs what it finds in it.

  Returns:
    What the JSON is to say.

  Raises:
    Unfaithful: the file is not what it should be.
  """
  module, quantization = formats.module(name), None
  if task.request.quantize:
    done = module.write_int8(task.network, path, task.calibration)
    quantization = {
      'scheme': task.request.quantize,
      'calibration_images': len(task.calibration),
      **(done or {}),
    }
  else:
    module.write(task.network, path)
  info = {
    'format': name,
    'file': path.name,
    'sha256': exported.sha256(path),
    'bytes': path.stat().st_size,
    **_signature(task, getattr(module, 'BATCH', 'batch')),
    'details': dict(getattr(module, 'DETAILS', {})),
    'quantization': quantization,
    'versions': _versions(module),
  }
  file = exported.Exported(info, module.load(path, info))
  judged = faithful.judge(
    task.reference,
    faithful.logits_of(file.logits, task.reference.images),
    int8=bool(task.request.quantize),
    tolerance=task.request.tolerance,
  )
  return {**info, **judged}


def _signature(task: Task, batch: int | str) -> dict[str, Any]:
  """What goes in and out, and what is between.

  Args:
    task: the export.
    batch: how many images the file takes; a name for any number.
  """
  network, model = task.network, dict(task.network.model)
  classes, mean, std = (
    list(model.pop(name)) for name in ('class_names', 'mean', 'std')
  )
  image_shape = model.pop('input_shape')
  norms = network.norms
  return {
    'input': {
      'shape': [batch, *image_shape],
      'dtype': network.input_dtype,
      'layout': 'NHWC',
      'normalisation': exported.INCLUDED
      if network.normalised
      else {'scale': 1 / 255, 'mean': mean, 'std': std},
      'framing': task.framing.as_json(),
    },
    'output': {'shape': [batch, len(classes)], 'logits': 'float32'},
    'classes': classes,
    'model': {
      'of': task.request.of,
      **model,
      'params': task.params,
      'batch_norms_folded': norms and sum(n.into is not None for n in norms),
    },
  }


def _versions(module: ModuleType) -> dict[str, str]:
  names = (*_LIBRARIES, *getattr(module, 'LIBRARIES', ()))
  return {
    'python': platform.python_version(),
    'cbkd_jax': cbkd_jax.__version__,
    **{name: metadata.version(name) for name in names},
  }


def _publish(unchecked: Path, path: Path, info: Mapping[str, Any]) -> None:
  """Gives a checked file its place; without its JSON it is not finished."""
  with unchecked.open('rb') as file:
    os.fsync(file.fileno())
  description = exported.description(path)
  description.unlink(missing_ok=True)
  unchecked.replace(path)
  workdir.write_json(description, info)


def _size_in_float(info: Mapping[str, Any]) -> str:
  """How large an int8 file is beside the same network in float32."""
  size, before = info['bytes'], info['quantization']['float32_bytes']
  return (
    f'{info["file"]}: {size:,} bytes, {size / before:.2f} of the '
    f'{before:,} in float32'
  )


def _row(info: Mapping[str, Any]) -> Sequence[str]:
  check, accuracy = info['check'], info['accuracy']
  return (
    info['file'],
    f'{info["bytes"] / 1e6:,.2f} MB',
    f'{check["top1_agreement"]:.4f}',
    f'{check["max_logit_difference"]:.1e}',
    f'{accuracy["before"]:.4f}',
    f'{accuracy["after"]:.4f}',
  )
