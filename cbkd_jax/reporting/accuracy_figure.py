"""What a run came to: accuracy after each stage, beside its controls."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Transform

from cbkd_jax.reporting import groups as groups_
from cbkd_jax.reporting import labels as labels_
from cbkd_jax.reporting import style
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.groups import Group, deviation, mean
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.reporting.wording import against, percent, stage_name


def looks(groups: Sequence[Group]) -> list[tuple[str, str, Any]]:
  """Colour, marker and dash of each group: the method's are the student's."""
  found, others = [], 0
  methods = [i for i, g in enumerate(groups) if _is_method(g)]
  for i in range(len(groups)):
    if i == (methods[0] if methods else 0):
      found.append((LIGHT.student, 'o', 'solid'))
      continue
    found.append(
      (
        style.OTHERS[others % len(style.OTHERS)],
        style.MARKERS[others % len(style.MARKERS)],
        style.DASHES[others % len(style.DASHES)],
      )
    )
    others += 1
  return found


def _is_method(group: Group) -> bool:
  return group.first.config['order'] == 'counterclockwise'


def _phases(group: Group) -> list[str]:
  """What was trained after the teacher, without what prepares a stage."""
  longest = max(group.records, key=lambda record: len(record.phases))
  return [p for p in longest.done if p != 'teacher' and not p.endswith('_pre')]


def accuracy(groups: Sequence[Group]) -> Drawn | None:
  """Accuracy after each stage; None where none or no teacher is known."""
  groups = [group for group in groups if _phases(group)]
  teachers = groups_.teacher_accuracies([r for g in groups for r in g.records])
  if not teachers:
    return None
  rows = [{'run': 'teacher', 'phase': 'teacher', **_numbers(teachers)}]
  for group in groups:
    for phase in _phases(group):
      rows.append(
        {
          'run': group.label,
          'phase': phase,
          **_numbers(group.accuracies(phase)),
        }
      )
  seeds = max(len(group.records) for group in groups)
  return Drawn(
    name='accuracy',
    title='Accuracy after each stage',
    says=_says(groups, teachers),
    notes='On the test split.'
    + ' Mean and standard deviation over seeds.' * (seeds > 1),
    rows=rows,
    draw=lambda size: _draw(groups, teachers, size),
  )


def _numbers(values: Sequence[float]) -> dict[str, Any]:
  return {
    'accuracy': mean(values),
    'deviation': deviation(values) if len(values) > 1 else None,
    'seeds': len(values),
  }


def _says(groups: Sequence[Group], teachers: Sequence[float]) -> str:
  if len(groups) > 1:
    ends = {
      g.label: mean(g.of_student('accuracy')) for g in groups if g.finished
    }
    teacher = f'the teacher has {percent(mean(teachers))}.'
    if not ends:
      return f'No run is finished; {teacher}'
    best, worst = max(ends, key=ends.get), min(ends, key=ends.get)
    said = f'{best} ends highest, at {percent(ends[best])}'
    if len(ends) > 1:
      said += f'; {worst} lowest, at {percent(ends[worst])}'
    return f'{said}; {teacher}'
  (group,), phases = groups, _phases(groups[0])
  values = [mean(group.accuracies(phase)) for phase in phases]
  who = 'student' if group.finished else 'network'
  said = f'After {stage_name(phases[-1])} the {who} has {percent(values[-1])}'
  said += f', {against(values[-1], mean(teachers), "the teacher")}'
  if len(values) > 1:
    lowest = min(range(len(values)), key=values.__getitem__)
    said += f'; it was lowest after {stage_name(phases[lowest])}'
    said += f', {percent(values[lowest])}' * (lowest < len(values) - 1)
  return f'{said}.'


def _draw(
  groups: Sequence[Group], teachers: Sequence[float], size: Size
) -> Figure:
  height = max(250, 60 + 30 * (len(groups) + 1))
  figure = style.new_figure(size, height)
  axes = style.frame(figure.add_subplot())
  order = list(dict.fromkeys(p for g in groups for p in _phases(g)[:-1]))
  last = len(order)  # every run's last phase
  several = len(groups) > 1
  labels = [(mean(teachers), 'teacher', teachers, LIGHT.teacher)]
  level, off = labels[0][0], deviation(teachers)
  axes.axhspan(level - off, level + off, color=LIGHT.teacher, alpha=0.1, lw=0)
  axes.axhline(level, color=LIGHT.teacher, linewidth=1.8)
  tracks = [g for g in groups if len(_phases(g)) > 1 or not several]
  end = last + 0.25
  for group, look in zip(groups, looks(groups)):
    phases = _phases(group)
    values = [group.accuracies(phase) for phase in phases]
    if group in tracks:
      at = [*(order.index(p) for p in phases[:-1]), last]
      place = tracks.index(group), len(tracks)
      _draw_track(axes, at, values, look, labels_.aside(axes, *place, 5))
      if not several:
        _draw_values(axes, at, values)
    else:  # a control without stages: a level, its spread at its end
      end += 0.14
      _draw_level(axes, end, values[0], look)
    alone = 'student' if group.finished else 'so far'
    name = group.label if several else alone
    labels.append((mean(values[-1]), name, values[-1], look[0]))
  crowded = last > (2 if size.narrow else 6)
  names = [p.replace('_', '\n' if crowded else ' ') for p in order]
  ends = {_phases(group)[-1].replace('_', ' ') for group in tracks}
  names.append(ends.pop() if len(ends) == 1 else 'end')
  axes.set_xticks(range(last + 1), names)
  axes.set_xlim(-0.35, end + 0.1)
  every = [teachers, *(g.accuracies(p) for g in groups for p in _phases(g))]
  style.show_all(
    axes,
    [mean(values) - deviation(values) for values in every],
    [mean(values) + deviation(values) for values in every],
  )
  style.percent_axis(axes.yaxis)
  most = 16 if size.narrow else 26
  labels_.beside_lines(
    axes,
    [
      (y, f'{style.shortened(name, most)}\n{_mean_std(values)}', color)
      for y, name, values, color in labels
    ],
    size,
  )
  return figure


def _mean_std(values: Sequence[float]) -> str:
  said = f'{100 * mean(values):.2f}'
  return said + (
    f' ± {100 * deviation(values):.2f}' if len(values) > 1 else ' %'
  )


def _draw_level(
  axes: Axes, end: float, values: Sequence[float], look: tuple[str, str, Any]
) -> None:
  """A line from the left to a point."""
  color, marker, dash = look
  axes.plot(
    [-0.35, end], [mean(values)] * 2, color=color, linestyle=dash, linewidth=1.3
  )
  _draw_points(axes, [end], [values], color, marker)


def _draw_track(
  axes: Axes,
  at: Sequence[int],
  values: Sequence[Sequence[float]],
  look: tuple[str, str, Any],
  transform: Transform,
) -> None:
  color, marker, dash = look
  axes.plot(
    at,
    [mean(v) for v in values],
    color=color,
    linestyle=dash,
    linewidth=2,
    transform=transform,
    zorder=3,
  )
  _draw_points(axes, at, values, color, marker, transform=transform)


def _draw_points(
  axes: Axes,
  at: Sequence[float],
  values: Sequence[Sequence[float]],
  color: str,
  marker: str,
  **more: Any,
) -> None:
  """Means, each with the deviation over seeds where there are several."""
  axes.errorbar(
    at,
    [mean(v) for v in values],
    yerr=[deviation(v) for v in values] if len(values[0]) > 1 else None,
    color=color,
    linestyle='none',
    elinewidth=1.2,
    capsize=3,
    marker=marker,
    markersize=8,
    markeredgecolor=LIGHT.paper,
    markeredgewidth=1.2,
    zorder=4,
    **more,
  )


def _draw_values(
  axes: Axes, at: Sequence[int], values: Sequence[Sequence[float]]
) -> None:
  means = [mean(found) for found in values]
  for i, (x, y) in enumerate(list(zip(at, means))[:-1]):
    # On the side that the line does not go to.
    rises = means[i + 1] > y or (i > 0 and means[i - 1] > y)
    axes.annotate(
      f'{100 * y:.2f}',
      (x, y),
      xytext=(0, -10 if rises else 9),
      textcoords='offset points',
      ha='center',
      va='top' if rises else 'bottom',
      color=LIGHT.ink,
    )
