"""The plot of a sweep: accuracy against parameters."""

import io
import itertools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from cbkd_jax.summary import short

_INK, _FAINT, _GRID = '#22303c', '#7b8794', '#e4e7eb'
_STUDENT, _TEACHER = '#0b6e99', '#c2410c'
# Around words, where lines of the grid cross them.
_HALO = patheffects.withStroke(linewidth=3, foreground='white')
_STYLE = {'font.size': 12, 'font.family': 'sans-serif', 'text.color': _INK}


def write(result: Mapping[str, Any], title: str, path: Path) -> None:
  """Writes pareto.png, 1600 x 1000 pixels; legible at half of that.

  Args:
    result: what pareto.json holds.
    title: of the plot.
    path: where it goes; may be in a bucket.
  """
  image = io.BytesIO()
  with matplotlib.rc_context(_STYLE):
    draw(result, title).savefig(image, format='png')
  path.write_bytes(image.getvalue())


def draw(result: Mapping[str, Any], title: str) -> Figure:
  """The plot; of its texts the last are labels, the teacher's first."""
  figure = Figure(figsize=(8, 5), dpi=200, layout='constrained')
  FigureCanvasAgg(figure)
  figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
  axes = figure.add_subplot()
  _frame(axes, result, title)
  _draw(axes, result)
  figure.draw_without_rendering()
  taken = [_box(axes, p) for p in (*result['points'], result['teacher'])]
  _label(axes, result, taken)
  return figure


def _frame(axes: Axes, result: Mapping[str, Any], title: str) -> None:
  """Axes, grid and words around the points."""
  axes.set_title(title, loc='left', fontsize=14, fontweight='bold', pad=30)
  seeds = max(len(point['accuracies']) for point in result['points'])
  said = 'filled: no smaller student is as accurate'
  if seeds > 1:
    said += f'; mean and standard deviation of {seeds} seeds'
  axes.annotate(
    said,
    (0, 1),
    xytext=(0, 12),
    xycoords='axes fraction',
    textcoords='offset points',
    color=_FAINT,
    fontsize=10.5,
  )
  axes.set_xscale('log')
  axes.set_xlabel('parameters', color=_FAINT)
  axes.set_ylabel('test accuracy, %', color=_FAINT)
  axes.grid(color=_GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.tick_params(colors=_FAINT, which='both', length=0)
  for side in 'top', 'right', 'left':
    axes.spines[side].set_visible(False)
  axes.spines['bottom'].set_color(_FAINT)


def _draw(axes: Axes, result: Mapping[str, Any]) -> None:
  points, teacher = result['points'], result['teacher']
  everything = [*points, teacher]
  best = sorted(
    (p for p in points if p['pareto_optimal']), key=lambda p: p['params']
  )
  axes.axhline(
    100 * teacher['accuracy'],
    color=_TEACHER,
    linewidth=1,
    linestyle=(0, (4, 4)),
  )
  axes.plot(
    [p['params'] for p in best],
    [100 * p['accuracy'] for p in best],
    color=_STUDENT,
    linewidth=1.8,
    zorder=2,
  )
  for point in everything:
    is_teacher = point is teacher
    color = _TEACHER if is_teacher else _STUDENT
    filled = is_teacher or point['pareto_optimal']
    axes.errorbar(
      point['params'],
      100 * point['accuracy'],
      yerr=100 * _deviation(point) or None,
      marker='*' if is_teacher else 'o',
      markersize=17 if is_teacher else 8.5,
      color=color,
      markerfacecolor=color if filled else 'white',
      markeredgecolor='white' if filled else color,
      markeredgewidth=1.2 if filled else 1.6,
      elinewidth=1.4,
      capsize=3.5,
      zorder=3,
    )
  params = [p['params'] for p in everything]
  spread = max(params) / min(params)
  # Room for labels at the sides.
  margin = max(1.25, spread**0.1)
  axes.set_xlim(min(params) / margin, max(params) * margin)
  low = min(100 * (p['accuracy'] - _deviation(p)) for p in everything)
  high = max(100 * (p['accuracy'] + _deviation(p)) for p in everything)
  room = max(0.12 * (high - low), 0.15)
  axes.set_ylim(low - 1.4 * room, high + 1.4 * room)
  axes.xaxis.set_major_locator(
    ticker.LogLocator(subs=(1, 2, 5) if spread < 200 else (1,))
  )
  axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: short(x)))
  axes.xaxis.set_minor_locator(ticker.NullLocator())
  axes.yaxis.set_major_locator(ticker.MaxNLocator(6))


def _deviation(point: Mapping[str, Any]) -> float:
  """The sample standard deviation over seeds, 0 of one."""
  accuracies = point['accuracies']
  return statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0


def _box(axes: Axes, point: Mapping[str, Any]) -> Bbox:
  """What a point covers, its error bar too, in pixels."""
  at = axes.transData.transform
  x, top = at((point['params'], 100 * (point['accuracy'] + _deviation(point))))
  _, low = at((point['params'], 100 * (point['accuracy'] - _deviation(point))))
  return Bbox.from_extents(x - 16, low - 16, x + 16, top + 16)


# Where a label may stand beside its point, the nicest place first: horizontal
# and vertical direction.
_PLACES = ((0, 1), (1, 0), (0, -1), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1))
_SIDES = {-1: 'right', 0: 'center', 1: 'left'}
_ENDS = {-1: 'top', 0: 'center', 1: 'bottom'}


def _label(
  axes: Axes, result: Mapping[str, Any], taken: Sequence[Bbox]
) -> None:
  """Names the points, each where it covers no other and no line."""
  teacher = result['teacher']
  inside, covered = axes.get_window_extent(), list(taken)
  labels = [(teacher, 'teacher', _TEACHER)]
  labels += [(p, p['target'], _INK) for p in result['points']]
  lines = _lines(axes)
  for (point, words, color), own in zip(labels, [taken[-1], *taken]):
    others = [box for box in covered if box is not own]
    tried = []
    for (right, up), away in itertools.product(_PLACES, (9, 17)):
      text = axes.annotate(
        f'{words}\n{short(point["params"])}, {100 * point["accuracy"]:.1f} %',
        (point['params'], 100 * point['accuracy']),
        xytext=(right * away, up * away),
        textcoords='offset points',
        ha=_SIDES[right],
        va=_ENDS[up],
        color=color,
        fontsize=10.5,
        linespacing=1.25,
        path_effects=[_HALO],
        zorder=4,
      )
      box = text.get_window_extent()
      hidden = sum(map(box.overlaps, others))
      outside = not (
        inside.x0 <= box.x0 <= box.x1 <= inside.x1
        and inside.y0 <= box.y0 <= box.y1 <= inside.y1
      )
      crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
      tried.append((10 * hidden + 8 * outside + crossed, len(tried), text, box))
      if not tried[-1][0]:
        break
    _, _, best, box = min(tried, key=lambda t: t[:2])
    for *_, text, _ in tried:
      if text is not best:
        text.remove()
    covered.append(box)


def _lines(axes: Axes) -> list[Any]:
  """Paths of the drawn lines, in pixels."""
  return [
    line.get_transform().transform_path(line.get_path())
    for line in axes.get_lines()
    if len(line.get_path()) > 1
  ]
