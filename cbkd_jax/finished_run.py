"""The figures of a finished run, from its teacher and its saved student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from cbkd_jax import (
  blocks,
  checkpoints,
  config,
  counting,
  evaluation,
  experiment,
  models,
  step,
  student,
  summary,
  workdir,
)
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data import Dataset, Split, Streamed
from cbkd_jax.data.augment import Augmentation


class Model(NamedTuple):
  """A network with its variables, on the host."""

  network: Network
  variables: Variables


class Finished(NamedTuple):
  """A finished run's networks and data.

  Attributes:
    config: the resolved config.
    teacher: the teacher.
    student: the student, folded.
    augmentation: holds mean and std.
    dataset: the data, read or opened.
    image_shape: (height, width, channels).
  """

  config: dict[str, Any]
  teacher: Model
  student: Model
  augmentation: Augmentation
  dataset: Dataset
  image_shape: tuple[int, int, int]


def read_config(directory: Path) -> dict[str, Any]:
  """The config of a finished run; what an older version lacks is default.

  Args:
    directory: the run's workdir.

  Raises:
    UserError: no finished run.
  """
  student.check_finished(directory / 'student')
  return config.with_defaults(workdir.read_json(directory / 'config.json'))


def load(directory: Path, data_dir: str | None = None) -> Finished:
  """Reads teacher, student and data of a finished run.

  Args:
    directory: the run's workdir.
    data_dir: where the data are, as data.dir; default the config's.

  Raises:
    UserError: no finished run, or something of it can't be read.
  """
  network, variables, augmentation = student.read(directory / 'student')
  values = read_config(directory)
  fields = values['data']
  image_shape = tuple(fields['image_shape'])
  teacher = models.build(
    values['teacher']['model'],
    fields['classes'],
    image_shape,
    jnp.dtype(values['compute_dtype']),
  ).network()
  teacher_variables = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(directory)),
    blocks.shapes(teacher, image_shape),
  )
  if data_dir is not None:
    fields = {**fields, 'dir': data_dir}
  return Finished(
    config=values,
    teacher=Model(teacher, teacher_variables),
    student=Model(network, variables),
    augmentation=augmentation,
    dataset=experiment.load_data({**values, 'data': fields}),
    image_shape=image_shape,
  )


def predict(
  run: Finished,
  split: Split | Streamed,
  *,
  batch_size: int | None = None,
  devices: tuple[Any, ...] | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """What both networks say of a split.

  Args:
    run: the run.
    split: its examples.
    batch_size: examples per call, over all devices; default the config's.
    devices: default all local ones.

  Returns:
    The logits of 'teacher' and 'student', float64 `[examples, classes]`, and
    the labels, int32 `[examples]`.
  """
  replicas = step.Replicas('shard_map', devices or tuple(jax.local_devices()))
  size = batch_size or run.config['eval_batch_size']
  logits = {}
  for name in 'teacher', 'student':
    network, variables = getattr(run, name)
    logits[name], labels = evaluation.predict(
      network, replicas.put(variables), split, run.augmentation, replicas, size
    )
  return logits, labels


def evaluate(
  directory: Path,
  *,
  batch_size: int | None = None,
  data_dir: str | None = None,
  devices: tuple[Any, ...] | None = None,
) -> dict[str, Any]:
  """Evaluates the teacher and the student of a finished run.

  Args:
    directory: the run's workdir.
    batch_size: as in `predict`.
    data_dir: as in `load`.
    devices: as in `predict`.

  Returns:
    'dataset', 'teacher' and 'student' as in summary.json: accuracy and the
    other scores, agreement, costs.

  Raises:
    UserError: no finished run, or its data can't be read.
  """
  run = load(directory, data_dir)
  test = run.dataset.test
  logits, labels = predict(run, test, batch_size=batch_size, devices=devices)
  figures = {
    name: {
      **evaluation.scores(values, labels),
      **counting.total(
        counting.per_block(getattr(run, name).network, run.image_shape)
      ),
    }
    for name, values in logits.items()
  }
  figures['student'] |= evaluation.comparison(
    logits['student'], logits['teacher']
  )
  return {
    'dataset': {'name': run.dataset.name, 'test': len(test)},
    **figures,
  }


def show(found: Mapping[str, Any], console: rich.console.Console) -> None:
  """Prints what `evaluate` has found as a table."""
  dataset = found['dataset']
  table = summary.new_table(
    f'{dataset["name"]}, {dataset["test"]:,} test examples'
  )
  table.add_column('', no_wrap=True)
  names = [k for k in found['student'] if k != 'bytes']
  for name in 'teacher', 'student':
    table.add_column(name, justify='right', no_wrap=True)
  for key in names:
    cells = [
      summary.figure(key, found[n].get(key)) for n in found if n != 'dataset'
    ]
    table.add_row(key.replace('_', ' '), *cells)
  console.print(table)
