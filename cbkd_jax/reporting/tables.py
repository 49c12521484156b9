"""The tables of a report, as text."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cbkd_jax.reporting import costs_figure, state
from cbkd_jax.reporting.groups import Group, deviation, mean
from cbkd_jax.reporting.network_figure import trains
from cbkd_jax.reporting.section import Section
from cbkd_jax.reporting.wording import percent, ratio
from cbkd_jax.summary import short


class Table(NamedTuple):
  """Headers and rows of text; the first column names its row.

  Attributes:
    title: what it holds.
    headers: of all columns.
    rows: as many cells each.
    total: whether the last row is the sum of the others.
    spans: headers above the headers: words, and how many columns.
    words: how many of the first columns are words, not numbers.
  """

  title: str
  headers: Sequence[str]
  rows: Sequence[Sequence[str]]
  total: bool = False
  spans: Sequence[tuple[str, int]] = ()
  words: int = 1


def stages(section: Section) -> Table:
  """A row per phase, those too that are not done yet."""
  done = {phase['name']: phase for phase in section.record.phases}
  planned = {}
  if section.plan is not None:
    planned = {s.name: trains(s.trained) for s in section.plan.stages}
    names = list(dict.fromkeys(['teacher', *section.plan.steps]))
  else:
    names = list(done)
  top_5 = any('top_5_accuracy' in phase for phase in done.values())
  validated = any('validation_accuracy' in phase for phase in done.values())
  headers = ['stage', 'trains', 'steps', 'accuracy', *(['top-5'] * top_5)]
  headers += ['validation'] * validated
  headers += ['agreement', 'KL', 'last loss', 'seconds', 'images/s']
  rows = []
  for name in names:
    what = 'everything' if name == 'teacher' else planned.get(name, '')
    what = what.removeprefix('trains ')
    if name.endswith('_pre'):
      what = f'prepares {name.removesuffix("_pre")}'
    found = done.get(name)
    if found is None:
      rows.append([name, what, state.progress(section, name)])
      rows[-1] += [''] * (len(headers) - len(rows[-1]))
      continue
    if name == 'teacher' and not found['steps']:
      what = 'nothing: taken over'
    rows.append(
      [
        name,
        what,
        f'{found["steps"]:,}',
        percent(found['accuracy']),
        *([percent(found.get('top_5_accuracy'))] * top_5),
        *([percent(found.get('validation_accuracy'))] * validated),
        percent(found.get('agreement')),
        _number(found.get('kl_to_teacher')),
        _number(found.get('loss')),
        _number(found.get('seconds'), '{:,.0f}'),
        _number(found.get('examples_per_second'), '{:,.0f}'),
      ]
    )
  return Table(
    'What each stage came to, on the test split', headers, rows, words=2
  )


def _number(value: float | None, form: str = '{:.4f}') -> str:
  if value is None or math.isnan(value):
    return ''
  return form.format(value)


def blocks(section: Section) -> Table | None:
  """What each block costs before and after, and the sums."""
  found = costs_figure.blocks_of(section.plan, section.analysis)
  if not found:
    return None
  kinds = costs_figure.kinds_of(found)
  headers = ['block', *(['teacher', 'student', 'ratio'] * len(kinds))]

  def cells(kind: costs_figure.Kind, pair: Sequence[float]) -> list[str]:
    return [*map(kind.text, pair), ratio(*pair)]

  rows = []
  for block in found:
    row = [block.name]
    for kind in kinds:
      row += cells(kind, (block.teacher[kind.key], block.student[kind.key]))
    rows.append(row)
  total = ['all']
  for kind in kinds:
    total += cells(kind, costs_figure.sums(found, kind.key))
  return Table(
    'Each block, teacher and student',
    headers,
    [*rows, total],
    total=True,
    spans=[('', 1), *((kind.name, 3) for kind in kinds)],
  )


def side_by_side(groups: Sequence[Group]) -> Table:
  """A row per group of runs; the teacher's figures are beside its student's."""
  headers = [
    *('run', 'accuracy', 'teacher', 'agreement', 'params', 'ratio'),
    *('FLOPs', 'ratio', 'steps', 'seconds', 'seeds'),
  ]
  rows = []
  for group in groups:
    seeds = f'{len(group.records)}'
    if not group.finished:
      row = [group.label, 'not finished', *[''] * (len(headers) - 3)]
      rows.append([*row, f'0 of {seeds}'])
      continue
    summaries = [record.summary for record in group.finished]
    first = summaries[0]
    if len(summaries) < len(group.records):
      seeds = f'{len(summaries)} of {seeds}'
    rows.append(
      [
        group.label,
        mean_deviation(group.of_student('accuracy')),
        mean_deviation([s['teacher']['accuracy'] for s in summaries]),
        mean_deviation(group.of_student('agreement')),
        short(first['student']['params']),
        f'÷{first["compression"]["params_ratio"]:.2f}',
        short(first['student']['flops_per_example']),
        f'÷{first["compression"]["flops_ratio"]:.2f}',
        f'{_total(first, "steps"):,}',
        f'{mean([_total(s, "seconds") for s in summaries]):,.0f}',
        seeds,
      ]
    )
  several = any(len(group.finished) > 1 for group in groups)
  title = 'After the last step, on the test split'
  title += '; mean ± standard deviation over seeds, in %' * several
  return Table(title, headers, rows)


def _total(summary: Mapping[str, Any], key: str) -> float:
  """Of all stages, without the teacher's training."""
  return sum(stage[key] for stage in summary['stages'])


def mean_deviation(values: Sequence[float]) -> str:
  """As percentages; with the sample standard deviation from two values on."""
  if len(values) < 2:
    return percent(mean(values))
  space = '\N{NO-BREAK SPACE}'
  return f'{100 * mean(values):.2f}{space}±{space}{100 * deviation(values):.2f}'
