"""Loss and its terms along the steps, a panel per phase."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cbkd_jax.reporting import style
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.record import Record
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.reporting.wording import stage_name
from cbkd_jax.summary import short

# What a row of training has beside its terms of the loss.
_NO_TERMS = {
  *('stage', 'step', 'examples', 'accuracy', 'grad_norm', 'loss'),
  'learning_rate',
}
_SMOOTHED = 40  # points of a line from which on it is shown smoothed

Curve = tuple[list[int], list[float]]  # steps and values


def losses(record: Record) -> Drawn | None:
  """Loss and its terms along the steps; None where nothing was logged."""
  rows = [row for row in record.metrics if 'loss' in row]
  phases = list(dict.fromkeys(row['stage'] for row in rows))
  curves = {phase: _curves(rows, phase) for phase in phases}
  curves = {phase: found for phase, found in curves.items() if 'loss' in found}
  if not curves:
    return None
  names = list(dict.fromkeys(n for c in curves.values() for n in c))
  return Drawn(
    name='losses',
    title='Loss, and what it is made of',
    says=_says(curves),
    notes=(
      'One training batch per point. Terms are shown before their weights; '
      'the loss is their weighted sum. Each stage has its own steps.'
    ),
    rows=[
      {
        'phase': row['stage'],
        'step': row['step'],
        **{name: row.get(name) for name in names},
      }
      for row in rows
    ],
    draw=lambda size: _draw(curves, size),
  )


def _curves(rows: Sequence[Mapping[str, Any]], phase: str) -> dict[str, Curve]:
  """Steps and values of the loss and of each term, by name, of a phase."""
  own = [row for row in rows if row['stage'] == phase]
  names = list(dict.fromkeys(k for row in own for k in row))
  names = ['loss'] + [
    n
    for n in names
    if n not in _NO_TERMS
    and '/' not in n
    and not n.startswith(('test_', 'validation_'))
  ]
  found = {}
  for name in names:
    # A run that diverged may have logged what is no number.
    there = [r for r in own if math.isfinite(r.get(name, math.nan))]
    if there:
      curve = [r['step'] for r in there], [r[name] for r in there]
      if name == 'loss' or curve != found.get('loss'):  # else it is the loss
        found[name] = curve
  return found


def _says(curves: Mapping[str, Mapping[str, Curve]]) -> str:
  name = list(curves)[-1]
  _, values = curves[name]['loss']
  parts = max(1, len(values) // 10)
  first, last = (float(np.mean(v)) for v in (values[:parts], values[-parts:]))
  if len(values) < 2:
    return f'In {stage_name(name)} the loss stands at {last:.3g}.'
  verb = 'falls' if last < first else 'rises'
  return (
    f'In {stage_name(name)} the loss {verb} from {first:.3g} to '
    f'{last:.3g}, means over the first and the last tenth of what was logged.'
  )


def _draw(curves: Mapping[str, Mapping[str, Curve]], size: Size) -> Figure:
  per_row = min(len(curves), 2 if size.narrow else 4)
  lines = math.ceil(len(curves) / per_row)
  figure = style.new_figure(size, 40 + lines * (150 if size.narrow else 185))
  grid = figure.subplots(lines, per_row, sharey=True, squeeze=False)
  panels = list(grid.flat)
  for panel in panels[len(curves) :]:
    panel.set_axis_off()
  every = [
    v for c in curves.values() for _, values in c.values() for v in values
  ]
  positive = min(every) > 0
  logarithmic = positive and max(every) > 20 * min(every)
  terms = list(
    dict.fromkeys(n for c in curves.values() for n in c if n != 'loss')
  )
  for panel, (phase, found) in zip(panels, curves.items()):
    style.frame(panel)
    if logarithmic:
      panel.set_yscale('log')
    main = LIGHT.teacher if phase == 'teacher' else LIGHT.student
    panel.set_title(
      phase.replace('_', ' '),
      loc='left',
      fontsize=size.text,
      fontweight='bold',
      color=main,
    )
    for name, curve in found.items():
      color, dash = main, 'solid'
      if name != 'loss':
        number = terms.index(name)
        color = style.OTHERS[number % len(style.OTHERS)]
        dash = style.DASHES[number % len(style.DASHES)]
      _draw_curve(panel, curve, color, dash, name == 'loss')
    steps = max(curve[0][-1] for curve in found.values())
    panel.set_xlim(0, steps * 1.02)
    panel.set_xticks([0, steps], ['0', short(steps)])
    for label, side in zip(panel.get_xticklabels(), ('left', 'right')):
      label.set_ha(side)
  decades = math.log10(max(every) / min(every)) if logarithmic else 0
  _scale(panels[0], decades)
  _draw_key(figure, terms, size)
  return figure


def _scale(axes: Axes, decades: float) -> None:
  """The numbers of a loss; logarithmic ones over so many decades."""
  if decades:
    subs = (1, 3) if decades < 3 else (1,)
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=subs, numticks=6))
    axes.yaxis.set_minor_locator(ticker.NullLocator())
  else:
    axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
  axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f'{y:.3g}'))


def _draw_curve(
  axes: Axes, curve: Curve, color: str, dash: Any, main: bool
) -> None:
  steps, values = curve
  width = 2.2 if main else 1.7
  if len(values) >= _SMOOTHED:
    axes.plot(steps, values, color=color, linewidth=0.8, alpha=0.3)
    values = _smooth(np.array(values))
  axes.plot(
    steps,
    values,
    color=color,
    linewidth=width,
    linestyle=dash,
    marker='o' if len(values) == 1 else '',
    zorder=2 if main else 3,
  )


def _smooth(values: np.ndarray) -> np.ndarray:
  """The mean of each value's neighbours, fewer at the ends."""
  reach = max(1, len(values) // 40)
  sums = np.cumsum(np.concatenate([[0.0], values]))
  at = np.arange(len(values))
  low = np.maximum(at - reach, 0)
  high = np.minimum(at + reach + 1, len(values))
  return (sums[high] - sums[low]) / (high - low)


def _draw_key(figure: Figure, terms: Sequence[str], size: Size) -> None:
  """Which line is which: the terms go on from panel to panel."""
  lines = [figure.axes[0].plot([], [], color=LIGHT.student, linewidth=2.2)[0]]
  for i, _ in enumerate(terms):
    lines += figure.axes[0].plot(
      [],
      [],
      color=style.OTHERS[i % len(style.OTHERS)],
      linestyle=style.DASHES[i % len(style.DASHES)],
      linewidth=1.5,
    )
  figure.legend(
    lines,
    ['loss', *terms],
    loc='outside lower left',
    ncols=min(len(lines), 3 if size.narrow else 6),
    frameon=False,
    labelcolor=LIGHT.ink,
    handlelength=2.6,
    columnspacing=1.6,
  )
