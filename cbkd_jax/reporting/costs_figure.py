"""What each block costs, teacher beside student."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbkd_jax.reporting import style
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.planned import Plan
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.reporting.wording import ratio
from cbkd_jax.summary import short


class Kind(NamedTuple):
  """A kind of cost: its name, how its values are written."""

  key: str
  name: str
  text: Callable[[float], str]


KINDS = (
  Kind('params', 'parameters', short),
  Kind('flops', 'FLOPs per example', short),
  Kind('milliseconds', 'time per batch', lambda v: f'{v:.3g} ms'),
  Kind('memory_bytes', 'memory', lambda v: f'{v / 2**20:.3g} MiB'),
)


class Block(NamedTuple):
  """A block's costs by kind; those that were not measured are absent."""

  name: str
  teacher: Mapping[str, float]
  student: Mapping[str, float]


def blocks_of(plan: Plan | None, analysis: Analysis | None) -> list[Block]:
  """What is known of each block: measured, else counted."""
  if analysis is not None:
    keys = [kind.key for kind in KINDS]
    return [
      Block(
        block.name,
        *(
          {k: getattr(c, k) for k in keys}
          for c in (block.teacher, block.student)
        ),
      )
      for block in analysis.blocks
    ]
  if plan is None:
    return []

  def counted(costs: Mapping[str, float]) -> dict[str, float]:
    return {'params': costs['params'], 'flops': costs['flops_per_example']}

  last = len(plan.teacher) - 1
  return [
    Block(
      f'block {i}' + ' + head' * (i == last), counted(teacher), counted(student)
    )
    for i, (teacher, student) in enumerate(zip(plan.teacher, plan.student))
  ]


def kinds_of(blocks: Sequence[Block]) -> list[Kind]:
  """The kinds of cost that all blocks have."""
  return [k for k in KINDS if all(k.key in block.teacher for block in blocks)]


def sums(blocks: Sequence[Block], key: str) -> tuple[float, float]:
  """Of the teacher and of the student."""
  return tuple(
    sum(costs[key] for costs in column)
    for column in (
      [block.teacher for block in blocks],
      [block.student for block in blocks],
    )
  )


def costs(blocks: Sequence[Block], measured: str = '') -> Drawn:
  """The figure of costs per block.

  Args:
    blocks: at least one.
    measured: on what time and memory were measured.
  """
  kinds = kinds_of(blocks)
  return Drawn(
    name='blocks',
    title='What each block costs',
    says=_says(blocks, kinds),
    notes=measured,
    rows=[
      {
        'block': block.name,
        **{
          f'{who}_{kind.key}': costs[kind.key]
          for kind in kinds
          for who, costs in (
            ('teacher', block.teacher),
            ('student', block.student),
          )
        },
      }
      for block in blocks
    ],
    draw=lambda size: _draw(blocks, kinds, size),
  )


def _says(blocks: Sequence[Block], kinds: Sequence[Kind]) -> str:
  said = []
  for kind in kinds:
    teacher, student = sums(blocks, kind.key)
    if not (teacher and student):
      continue
    less = 'fewer' if kind.key in ('params', 'flops') else 'less'
    by = teacher / student
    if by < 1:
      by, less = 1 / by, 'more'
    said.append(f'{by:.2f}x {less} {kind.name.partition(" ")[0]}')
  *all_but_last, last = said
  return f'In all, the student has {", ".join(all_but_last)} and {last}.'


def _draw(blocks: Sequence[Block], kinds: Sequence[Kind], size: Size) -> Figure:
  columns = 1 if size.narrow else 2
  lines = -(-len(kinds) // columns)
  height = 34 + 34 * len(blocks)
  figure = style.new_figure(size, 10 + lines * (height + 12))
  grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
  panels = list(grid.flat)
  for panel in panels[len(kinds) :]:
    panel.set_axis_off()
  for panel, kind in zip(panels, kinds):
    _draw_kind(panel, blocks, kind, size)
  figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
  return figure


def _draw_kind(
  axes: Axes, blocks: Sequence[Block], kind: Kind, size: Size
) -> None:
  style.frame(axes, grid='')
  totals = sums(blocks, kind.key)
  axes.set_title(
    f'{kind.name.partition(" ")[0]}: {kind.text(totals[0])} → '
    f'{kind.text(totals[1])}',
    loc='left',
    fontsize=size.text,
    fontweight='bold',
    color=LIGHT.ink,
  )
  longest = max(max(b.teacher[kind.key], b.student[kind.key]) for b in blocks)
  for i, block in enumerate(blocks):
    values = block.teacher[kind.key], block.student[kind.key]
    for value, color, up, who in zip(
      values,
      (LIGHT.teacher, LIGHT.student),
      (-0.19, 0.19),
      ('teacher', 'student'),
    ):
      axes.barh(i + up, value, height=0.34, color=color, linewidth=0)
      words = kind.text(value)
      if color == LIGHT.student:
        words += f'  {ratio(*values)}'
      if i == 0 and kind is KINDS[0]:  # instead of a legend
        words = f'{who} {words}'
      axes.annotate(
        words,
        (value, i + up),
        xytext=(5, 0),
        textcoords='offset points',
        va='center_baseline',
        color=color,
        fontsize=size.text - 0.5,
        fontweight='bold' if color == LIGHT.student else 'normal',
      )
  # Labels stand behind the bars: room for them.
  axes.set_xlim(0, 1.6 * longest if size.narrow else 1.75 * longest)
  axes.set_ylim(len(blocks) - 0.5, -0.5)
  axes.set_yticks(range(len(blocks)), [block.name for block in blocks])
  axes.set_xticks([])
  axes.axvline(0, color=LIGHT.faint, linewidth=1)
