"""The figures of a finished run, from its teacher and its saved student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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


def read_config(directory: Path) -> dict[str, Any]:
  """The config of a finished run; what an older version lacks is default.

  Args:
    directory: the run's workdir.

  Raises:
    UserError: no finished run.
  """
  student.check_finished(directory / 'student')
  return config.with_defaults(workdir.read_json(directory / 'config.json'))


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
    batch_size: examples per call, over all devices; default the config's.
    data_dir: where the data are, as data.dir; default the config's.
    devices: default all local ones.

  Returns:
    'dataset', 'teacher' and 'student' as in summary.json: accuracy and the
    other scores, agreement, costs.

  Raises:
    UserError: no finished run, or its data can't be read.
  """
  network, variables, augmentation = student.read(directory / 'student')
  values = read_config(directory)
  fields = values['data']
  image_shape = tuple(fields['image_shape'])
  teacher_network = models.build(
    values['teacher']['model'],
    fields['classes'],
    image_shape,
    jnp.dtype(values['compute_dtype']),
  ).network()
  teacher_variables = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(directory)),
    blocks.shapes(teacher_network, image_shape),
  )
  if data_dir is not None:
    fields = {**fields, 'dir': data_dir}
  dataset = experiment.load_data({**values, 'data': fields})
  devices = devices or tuple(jax.local_devices())
  replicas = step.Replicas('shard_map', devices)
  size = batch_size or values['eval_batch_size']
  figures, logits = {}, {}
  for name, net, trees in (
    ('teacher', teacher_network, teacher_variables),
    ('student', network, variables),
  ):
    logits[name], labels = evaluation.predict(
      net, replicas.put(trees), dataset.test, augmentation, replicas, size
    )
    figures[name] = {
      **evaluation.scores(logits[name], labels),
      **counting.total(counting.per_block(net, image_shape)),
    }
  figures['student'] |= evaluation.comparison(
    logits['student'], logits['teacher']
  )
  return {
    'dataset': {'name': dataset.name, 'test': len(dataset.test)},
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
