"""The method beside its controls: `python -m cbkd_jax.compare --config=FILE
--workdir=DIR --seeds=N [--orders=counterclockwise,joint,...]`.

One teacher per seed, the same number of training steps for every order. The
same command goes on where it was stopped; more seeds or orders add rows.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console
from absl import flags

from cbkd_jax import (
  checkpoints,
  command,
  config,
  experiment,
  preemption,
  summary,
  train,
  workdir,
)
from cbkd_jax.errors import NonFiniteLossError, UserError, nearest
from cbkd_jax.stages import ORDERS


def compare(
  values: Mapping[str, Any],
  directory: Path,
  *,
  seeds: int,
  orders: Sequence[str],
  console: rich.console.Console,
  interrupted: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
  """Runs every order with every seed, and writes the tables.

  Args:
    values: the config, as nested plain values; its `order` is replaced, its
      `seed` is the first one.
    directory: where the runs go, as `seed_S/ORDER`, and compare.md and
      compare.json.
    seeds: how many, consecutive.
    orders: which orders; a seed's first run trains its teacher.
    console: where to show how it goes.
    interrupted: whether to save and stop.

  Returns:
    What compare.json holds: 'rows', one per order and seed, and 'teachers'.

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
  runs = [
    (
      {**values, 'order': order, 'seed': seed},
      directory / f'seed_{seed}' / order,
    )
    for seed in range(values['seed'], values['seed'] + seeds)
    for order in orders
  ]
  for run_values, run_directory in runs:
    config.check(run_values)
    experiment.build(run_values)
    workdir.check_config(run_directory, run_values, config.defaults())
  diverged = []
  for number, (run_values, run_directory) in enumerate(runs, start=1):
    title = f'{run_values["order"]}, seed {run_values["seed"]}'
    console.rule(f'{number} of {len(runs)}: {title}')
    try:
      _run(run_values, run_directory, console, interrupted)
    except NonFiniteLossError as error:
      diverged.append(f'{title}: {error}')
      console.print(diverged[-1], highlight=False)
    result = _collect(runs)
    if result['rows']:
      workdir.write_json(directory / 'compare.json', result)
      (directory / 'compare.md').write_text(_markdown(values, runs, result))
  if result['rows']:
    _show(values, result, console)
  if diverged:
    raise NonFiniteLossError('; '.join(diverged))
  return result


def _run(
  values: Mapping[str, Any],
  directory: Path,
  console: rich.console.Console,
  interrupted: Callable[[], bool],
) -> None:
  """Runs what is not finished, with a teacher that this seed has already."""
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
        for other in sorted(directory.parent.glob('*/teacher'))
        if checkpoints.is_finished(other)
      ),
      None,
    )
  if source is not None:
    with workdir.locked(directory):
      workdir.begin(directory, values, source, ['teacher'])
  train.train_and_evaluate(
    values, directory, console=console, interrupted=interrupted
  )


def _collect(runs: Sequence[tuple[Mapping[str, Any], Path]]) -> dict[str, Any]:
  """The rows of all runs that are finished, and their teachers."""
  rows, teachers = [], {}
  for values, directory in runs:
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
    'objective': experiment.build(values).stages[-1].objective,
    'seed': values['seed'],
    'accuracy': found['student']['accuracy'],
    'agreement': found['student']['agreement'],
    'steps': sum(stage['steps'] for stage in stages),
    'seconds': sum(stage['seconds'] for stage in stages),
    'params': found['student']['params'],
  }


def _table(result: Mapping[str, Any]) -> list[list[str]]:
  """Rows of text: the teacher, then each order's mean ± std over seeds."""
  lines = []
  teachers = result['teachers']
  if teachers:
    accuracies = [row['accuracy'] for row in teachers]
    params = f'{teachers[0]["params"]:,}'
    lines.append(
      ['teacher', mean_std(accuracies), '', str(len(teachers)), '', '', params]
    )
  by_order: dict[str, list[Mapping[str, Any]]] = {}
  for row in result['rows']:
    by_order.setdefault(row['order'], []).append(row)
  for order, rows in by_order.items():
    lines.append(
      [
        order,
        mean_std([row['accuracy'] for row in rows]),
        mean_std([row['agreement'] for row in rows]),
        str(len(rows)),
        f'{rows[0]["steps"]:,}',
        f'{statistics.mean(row["seconds"] for row in rows):,.0f}',
        f'{rows[0]["params"]:,}',
      ]
    )
  return lines


_HEADERS = (
  'order',
  'accuracy',
  'agreement',
  'n',
  'steps',
  'seconds',
  'params',
)


def mean_std(values: Sequence[float]) -> str:
  """Mean ± sample standard deviation, the latter from two values on."""
  mean = statistics.mean(values)
  if len(values) < 2:
    return f'{mean:.4f}'
  return f'{mean:.4f} ± {math.sqrt(statistics.variance(values)):.4f}'


def _markdown(
  values: Mapping[str, Any],
  runs: Sequence[tuple[Mapping[str, Any], Path]],
  result: Mapping[str, Any],
) -> str:
  finished = [d for _, d in runs if (d / 'summary.json').exists()]
  found = workdir.read_json(finished[0] / 'summary.json')
  lines = [
    f'# {values["teacher"]["model"]} on {values["data"]["name"]}, '
    f'{values["objective"]}',
    '',
    f'Accuracy on the test split ({found["dataset"]["test"]:,} examples) after '
    'the last step, and agreement with the teacher: mean ± sample standard '
    'deviation over n seeds. Every order takes the same number of training '
    "steps; `seconds` is the student's training, compilation included.",
    '',
    '| ' + ' | '.join(_HEADERS) + ' |',
    '|---' * len(_HEADERS) + '|',
  ]
  lines += ['| ' + ' | '.join(row) + ' |' for row in _table(result)]
  device, versions = found['device'], found['versions']
  lines += [
    '',
    f'{device["count"]} x {device["kind"]}; '
    + ', '.join(f'{name} {version}' for name, version in versions.items()),
    '',
  ]
  return '\n'.join(lines)


def _show(
  values: Mapping[str, Any],
  result: Mapping[str, Any],
  console: rich.console.Console,
) -> None:
  table = summary.new_table(
    f'{values["teacher"]["model"]} on {values["data"]["name"]}'
  )
  for header in _HEADERS:
    table.add_column(
      header, justify='left' if header == 'order' else 'right', no_wrap=True
    )
  for row in _table(result):
    table.add_row(*row)
  console.print(table)


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(config=values.config, workdir=values.workdir)
  plain = config.plain(values.config)
  command.set_up_devices(plain)
  compare(
    plain,
    Path(values.workdir),
    seeds=values.seeds,
    orders=values.orders,
    console=rich.console.Console(),
    interrupted=preemption.listen(),
  )


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_string('workdir', None, 'Where the runs and tables go.')
  flags.DEFINE_integer('seeds', 3, 'How many seeds.')
  flags.DEFINE_list('orders', list(ORDERS), 'Which orders.')
  command.run(main)
