"""Accuracy against size, of several runs."""

from collections.abc import Sequence

from matplotlib import ticker
from matplotlib.figure import Figure

from cbkd_jax.reporting import groups as groups_
from cbkd_jax.reporting import labels, style
from cbkd_jax.reporting.accuracy_figure import looks
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.groups import Group, deviation, mean
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.reporting.wording import against, percent
from cbkd_jax.summary import short


def size_and_accuracy(groups: Sequence[Group]) -> Drawn | None:
  """The figure; None with fewer than two groups that are finished."""
  groups = [group for group in groups if group.finished]
  if len(groups) < 2:
    return None
  records = [record for group in groups for record in group.finished]
  teachers = groups_.teacher_accuracies(records)
  teacher_params = records[0].summary['teacher']['params']
  rows = [
    {
      'run': group.label,
      'params': group.finished[0].summary['student']['params'],
      'accuracy': mean(group.of_student('accuracy')),
      'deviation': deviation(group.of_student('accuracy'))
      if len(group.finished) > 1
      else None,
      'seeds': len(group.finished),
    }
    for group in groups
  ]
  teacher = {
    'run': 'teacher',
    'params': teacher_params,
    'accuracy': mean(teachers),
    'deviation': deviation(teachers) if len(teachers) > 1 else None,
    'seeds': len(teachers),
  }
  return Drawn(
    name='size',
    title='Accuracy against size',
    says=_says(rows, teacher),
    notes='On the test split, after the last step. Students of one size stand '
    'abreast.'
    + ' Mean and standard deviation over seeds.'
    * any(row['seeds'] > 1 for row in rows),
    rows=[teacher, *rows],
    draw=lambda size: _draw(groups, [teacher, *rows], size),
  )


def _says(rows: Sequence[dict], teacher: dict) -> str:
  best = max(rows, key=lambda row: row['accuracy'])
  gap = against(best['accuracy'], teacher['accuracy'], 'the teacher')
  least = min(rows, key=lambda row: row['params'])
  said = (
    f'{best["run"]} is the most accurate student, {gap}, with '
    f'{teacher["params"] / best["params"]:.2f} times fewer parameters'
  )
  if least['params'] < best['params']:
    said += (
      f'; the smallest, {least["run"]}, has {percent(least["accuracy"])} at '
      f'{teacher["params"] / least["params"]:.2f} times fewer'
    )
  return f'{said}.'


def _draw(groups: Sequence[Group], rows: Sequence[dict], size: Size) -> Figure:
  figure = style.new_figure(size, max(280, 60 + 34 * len(rows)))
  axes = style.frame(figure.add_subplot(), grid='both')
  colors, sizes = [], [row['params'] for row in rows]
  for row, (color, marker, _) in zip(
    rows, [(LIGHT.teacher, 's', None), *looks(groups)]
  ):
    place = sizes[: len(colors)].count(row['params'])
    count = sizes.count(row['params'])
    colors.append(color)
    axes.errorbar(
      row['params'],
      row['accuracy'],
      yerr=row['deviation'],
      color=color,
      marker=marker,
      markersize=10,
      markeredgecolor=LIGHT.paper,
      markeredgewidth=1.2,
      elinewidth=1.4,
      capsize=3.5,
      # Students of one size stand abreast.
      transform=labels.aside(axes, place, count, 8),
      zorder=3,
    )
  apart = max(sizes) / min(sizes)
  margin = max(1.2, apart**0.14)
  axes.set_xscale('log')
  axes.set_xlim(min(sizes) / margin, max(sizes) * margin)
  axes.xaxis.set_major_locator(
    ticker.LogLocator(subs=(1, 2, 5) if apart < 60 else (1,), numticks=6)
  )
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: short(x)))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.set_xlabel('parameters')
  spreads = [row['deviation'] or 0.0 for row in rows]
  style.show_all(
    axes,
    [row['accuracy'] - off for row, off in zip(rows, spreads)],
    [row['accuracy'] + off for row, off in zip(rows, spreads)],
  )
  style.percent_axis(axes.yaxis)
  most = 16 if size.narrow else 26
  labels.beside_points(
    axes,
    [
      (
        (row['params'], row['accuracy']),
        f'{style.shortened(row["run"], most)}\n'
        f'{100 * row["accuracy"]:.2f} %'
        + ('' if size.narrow else f', {short(row["params"])}'),
        color,
      )
      for row, color in zip(rows, colors)
    ],
    size,
  )
  return figure
