"""The tables of a comparison, as text and on the terminal."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console

from cbkd_jax import summary
from cbkd_jax.data import Wanted


def _table(
  result: Mapping[str, Any], objectives: Sequence[str]
) -> tuple[Sequence[str], list[list[str]]]:
  """Headers and rows of text."""
  if objectives:
    return _by_objective(result, objectives)
  return _HEADERS, _by_order(result)


def _by_objective(
  result: Mapping[str, Any], objectives: Sequence[str]
) -> tuple[Sequence[str], list[list[str]]]:
  """An objective per row, an order's accuracy per column."""
  orders = list(dict.fromkeys(row['order'] for row in result['rows']))
  lines = []
  teachers = [row['accuracy'] for row in result['teachers']]
  if teachers:
    blank = [''] * (len(orders) - 1)
    lines.append(['teacher', mean_std(teachers), *blank, str(len(teachers))])
  for objective in objectives:
    cells, seeds = [], set()
    for order in orders:
      rows = [
        row
        for row in result['rows']
        if (row['objective'], row['order']) == (objective, order)
      ]
      seeds.add(len(rows))
      cells.append(mean_std([row['accuracy'] for row in rows]) if rows else '-')
    lines.append([objective, *cells, '-'.join(map(str, sorted(seeds)))])
  return ('objective', *orders, 'n'), lines


def _by_order(result: Mapping[str, Any]) -> list[list[str]]:
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


def markdown(
  values: Mapping[str, Any],
  found: Mapping[str, Any],
  result: Mapping[str, Any],
  objectives: Sequence[str],
) -> str:
  """compare.md.

  Args:
    values: the config.
    found: some run's summary.
    result: what compare.json holds.
    objectives: the compared ones, if any.
  """
  headers, rows = _table(result, objectives)
  if objectives:  # as code: a product's stars are not emphasis
    rows = [
      [f'`{first}`' if first in objectives else first, *rest]
      for first, *rest in rows
    ]
  title = f'# {_what(values)}'
  if objectives:
    what = ''
    more = (
      "Every run takes the same number of training steps; an objective's name "
      'stands for its published recipe.'
    )
  else:
    title += f', `{values["objective"]}`'
    what = ', and agreement with the teacher'
    more = (
      'Every order takes the same number of training steps; `seconds` is the '
      "student's training, compilation included."
    )
  lines = [
    title,
    '',
    f'Accuracy on the test split ({found["dataset"]["test"]:,} examples) after '
    f'the last step{what}: mean ± sample standard deviation over n seeds. '
    + more,
    '',
    '| ' + ' | '.join(headers) + ' |',
    '|---' * len(headers) + '|',
  ]
  lines += ['| ' + ' | '.join(row) + ' |' for row in rows]
  device, versions = found['device'], found['versions']
  lines += [
    '',
    f'{device["count"]} x {device["kind"]}; '
    + ', '.join(f'{name} {version}' for name, version in versions.items()),
    '',
  ]
  return '\n'.join(lines)


def show(
  values: Mapping[str, Any],
  result: Mapping[str, Any],
  objectives: Sequence[str],
  console: rich.console.Console,
) -> None:
  """Prints the table."""
  headers, rows = _table(result, objectives)
  table = summary.new_table(_what(values))
  for i, header in enumerate(headers):
    table.add_column(header, justify='right' if i else 'left', no_wrap=True)
  for row in rows:
    table.add_row(*row)
  console.print(table)


def _what(values: Mapping[str, Any]) -> str:
  title = Wanted.of(values['data']).title
  return f'{values["teacher"]["model"]} on {title}'
