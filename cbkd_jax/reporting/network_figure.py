"""The network drawn as blocks, a row per stage, as in the paper's figure 2."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cbkd_jax.reporting import style
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.planned import Plan
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.summary import short

_MARGIN, _GAP = 10, 14  # pixels, at the sides and between blocks
_HEAD, _FOOT = 24, 30  # a row's name above its blocks; numbers below
_LEAST = 3  # a block's sides, where it would be too small to be seen


class _Row(NamedTuple):
  name: str
  trains: str
  accuracy: float | None
  student: tuple[bool, ...]
  trained: tuple[bool, ...] | None  # None: of the teacher, which stands alone


def network(plan: Plan, accuracies: Mapping[str, float]) -> Drawn:
  """The figure.

  Args:
    plan: the run's.
    accuracies: of the phases that are done, by name, the teacher's too.
  """
  rows = _rows(plan, accuracies)
  return Drawn(
    name='network',
    title='The network, stage by stage',
    says=_says(plan),
    notes=(
      "Input on the left. A block's area is its number of parameters (of the "
      'student, as folded at the end; the head counts with the last block).'
    ),
    rows=[
      {
        'row': row.name,
        'block': i,
        'network': 'student' if row.student[i] else 'teacher',
        'trained': row.trained is not None and row.trained[i],
        'params': (plan.student if row.student[i] else plan.teacher)[i][
          'params'
        ],
      }
      for row in rows
      for i in range(len(plan.teacher))
    ],
    draw=lambda size: _draw(plan, rows, size),
  )


def _says(plan: Plan) -> str:
  teacher, student = (
    [block['params'] for block in blocks]
    for blocks in (plan.teacher, plan.student)
  )
  ratios = [t / s for t, s in zip(teacher, student)]
  most = max(range(len(ratios)), key=ratios.__getitem__)
  share = teacher[most] / sum(teacher)
  return (
    f'{short(sum(teacher))} parameters become {short(sum(student))}; block '
    f'{most}, which holds {share:.0%} of the teacher, shrinks most: '
    f'{ratios[most]:.1f} times.'
  )


def _rows(plan: Plan, accuracies: Mapping[str, float]) -> list[_Row]:
  blocks = len(plan.teacher)
  none = (False,) * blocks
  rows = [_Row('teacher', '', accuracies.get('teacher'), none, None)]
  for stage in plan.stages:
    rows.append(
      _Row(
        stage.name,
        trains(stage.trained),
        accuracies.get(stage.name),
        # A control's shallow blocks may not be the teacher's own.
        tuple(
          s or (stage.folded and i >= stage.inherited)
          for i, s in enumerate(stage.student)
        ),
        stage.trained[:-1],
      )
    )
  return rows


def trains(trained: Sequence[bool]) -> str:
  """In words; the head is the last part."""
  *blocks, head = trained
  if all(trained):
    return 'trains everything'
  numbers = [str(i) for i, is_trained in enumerate(blocks) if is_trained]
  named = f'block{"s" * (len(numbers) > 1)} {", ".join(numbers)}'
  return f'trains {named}{" and the head" * head}'


def _draw(plan: Plan, rows: Sequence[_Row], size: Size) -> Figure:
  roots = [math.sqrt(block['params']) for block in plan.teacher]
  roots = [
    max(root, math.sqrt(block['params']))
    for root, block in zip(roots, plan.student)
  ]
  room = size.width - 2 * _MARGIN - _GAP * (len(roots) + 1)
  scale = room / sum(roots)
  # The largest is not higher than this; all have the same proportions.
  flat = min(1.0, (92 if size.narrow else 110) / (scale * max(roots)))
  columns, left = [], _MARGIN + _GAP
  for root in roots:
    columns.append(left + scale * root / 2)
    left += scale * root + _GAP
  band = scale * max(roots) * flat
  step = _HEAD + band + _FOOT
  key = 2 * 20 if size.narrow else 20
  height = 8 + step * len(rows) + key + 12
  figure = style.new_figure(size, height, laid_out=False)
  axes = figure.add_axes((0, 0, 1, 1))
  axes.set(xlim=(0, size.width), ylim=(height, 0))
  axes.set_axis_off()
  for number, row in enumerate(rows):
    top = 8 + number * step
    _draw_words(axes, row, top, size)
    middle = top + _HEAD + band / 2
    axes.plot(
      [_MARGIN, size.width - _MARGIN], [middle] * 2, color=LIGHT.faint, lw=1
    )
    for i, x in enumerate(columns):
      _draw_block(axes, plan, row, i, (x, middle), (scale, scale * flat))
    if number in (0, len(rows) - 1):
      numbers = plan.teacher if number == 0 else plan.student
      _draw_numbers(axes, columns, numbers, top + _HEAD + band + 3, size)
  _draw_key(axes, size, 8 + step * len(rows) + 8)
  return figure


def _draw_words(axes: Axes, row: _Row, top: float, size: Size) -> None:
  """The row's name, what trains, and what it came to."""
  axes.text(
    _MARGIN,
    top + 9,
    row.name.replace('_', ' '),
    color=LIGHT.teacher if row.trained is None else LIGHT.ink,
    fontweight='bold',
    va='center',
  )
  axes.text(
    _MARGIN + 7.2 * size.text,
    top + 9,
    row.trains,
    color=LIGHT.faint,
    va='center',
    fontsize=size.text - 1,
  )
  if row.accuracy is not None:
    said = f'{100 * row.accuracy:.2f} %'
  else:
    said = 'not done'
  axes.text(
    size.width - _MARGIN, top + 9, said,
    color=LIGHT.faint if row.accuracy is None else LIGHT.ink,
    va='center', ha='right',
  )  # fmt: skip


def _draw_block(
  axes: Axes,
  plan: Plan,
  row: _Row,
  index: int,
  centre: tuple[float, float],
  scale: tuple[float, float],
) -> None:
  """A block; behind a student's, the outline of the teacher's."""
  costs = plan.student if row.student[index] else plan.teacher
  color = LIGHT.student if row.student[index] else LIGHT.teacher

  def box(params: float, **looks) -> None:
    root = math.sqrt(params)
    wide, high = (max(root * s, _LEAST) for s in scale)
    corner = centre[0] - wide / 2, centre[1] - high / 2
    axes.add_patch(Rectangle(corner, wide, high, **looks))

  if row.student[index]:
    box(
      plan.teacher[index]['params'],
      facecolor='none',
      edgecolor=LIGHT.teacher,
      linewidth=0.9,
      linestyle=(0, (2, 2)),
      zorder=2,
    )
  params = costs[index]['params']
  if row.trained is None or row.trained[index]:
    box(params, facecolor=color, edgecolor='none', zorder=3)
  else:
    box(params, facecolor=LIGHT.paper, edgecolor='none', zorder=3)
    box(params, facecolor=color, edgecolor='none', alpha=0.16, zorder=3)
    box(
      params,
      facecolor='none',
      edgecolor=color,
      hatch='////',
      linewidth=1,
      zorder=4,
    )
  if row.trained is not None and row.trained[index]:
    box(params, facecolor='none', edgecolor=LIGHT.ink, linewidth=2.2, zorder=5)


def _draw_numbers(
  axes: Axes,
  columns: Sequence[float],
  costs: Sequence[Mapping[str, float]],
  y: float,
  size: Size,
) -> None:
  """Each block's parameters below it, where they don't touch the one before."""
  end = 0.0
  for x, block in zip(columns, costs):
    words = short(block['params'])
    half = len(words) * size.text * 0.33
    x = min(max(x, half + 2), size.width - half - 2)
    if x - half < end + 3:
      continue
    end = x + half
    axes.text(x, y, words, ha='center', va='top', color=LIGHT.ink)


def _draw_key(axes: Axes, size: Size, y: float) -> None:
  """What the marks mean."""
  entries = (
    ("teacher's", {'facecolor': LIGHT.teacher}),
    ("student's", {'facecolor': LIGHT.student}),
    ('trains', {'facecolor': 'none', 'edgecolor': LIGHT.ink, 'linewidth': 2.2}),
    (
      'frozen',
      {'facecolor': 'none', 'edgecolor': LIGHT.faint, 'hatch': '////'},
    ),
    (
      'replaced',
      {
        'facecolor': 'none',
        'edgecolor': LIGHT.teacher,
        'linestyle': (0, (2, 2)),
      },
    ),
  )
  per_row = 3 if size.narrow else 5
  step = (size.width - 2 * _MARGIN) / per_row
  for i, (words, looks) in enumerate(entries):
    x, top = _MARGIN + step * (i % per_row), y + 20 * (i // per_row)
    axes.add_patch(Rectangle((x + 1, top + 2), 18, 12, **looks))
    axes.text(x + 25, top + 8, words, va='center', color=LIGHT.faint)
