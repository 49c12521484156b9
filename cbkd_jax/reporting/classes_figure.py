"""What each class loses or gains in accuracy."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from cbkd_jax.reporting import style
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.confusion_figures import NAMED, name_of
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.style import LIGHT, Size
from cbkd_jax.reporting.wording import percent

_ENDS = 8  # classes at either end of a long list


def drops(analysis: Analysis) -> Drawn:
  """The figure of what each class loses."""
  change = 100 * (
    analysis.student_class_accuracy - analysis.teacher_class_accuracy
  )
  order = [
    int(i) for i in np.argsort(change, kind='stable') if change[i] == change[i]
  ]
  return Drawn(
    name='classes',
    title='What each class loses or gains',
    says=_says(analysis, change, order),
    notes=(
      "Student's accuracy on the class minus the teacher's, in percentage "
      'points.'
      + f' The {_ENDS} lowest, and up to {_ENDS} that gain most.'
      * (len(order) > NAMED)
    ),
    rows=[
      {
        'label': i,
        'class': analysis.class_names[i],
        'examples': int(analysis.class_examples[i]),
        'teacher_accuracy': float(analysis.teacher_class_accuracy[i]),
        'student_accuracy': float(analysis.student_class_accuracy[i]),
      }
      for i in order
    ],
    draw=lambda size: _draw(analysis, change, order, size),
  )


def _says(analysis: Analysis, change: np.ndarray, order: Sequence[int]) -> str:
  lost = sum(change[i] < 0 for i in order)
  gained = sum(change[i] > 0 for i in order)
  said = (
    f'{lost} of {len(order)} classes lose accuracy, {gained} gain, '
    f'{len(order) - lost - gained} stay'
  )
  if lost:
    first = order[0]
    said += (
      f'; "{name_of(analysis, first)}" loses most, {-change[first]:.1f} points '
      f'of {percent(analysis.teacher_class_accuracy[first])}'
    )
  return f'{said}.'


def _draw(
  analysis: Analysis,
  change: np.ndarray,
  order: Sequence[int],
  size: Size,
) -> Figure:
  shown = list(order)
  if len(shown) > NAMED:
    gain = [label for label in shown[-_ENDS:] if change[label] > 0]
    shown = [*shown[:_ENDS], *([None] if gain else []), *gain]
  figure = style.new_figure(size, 24 + 24 * len(shown))
  axes = style.frame(figure.add_subplot(), grid='')
  most = 16 if size.narrow else 32
  names = []
  for y, label in enumerate(shown):
    if label is None:
      names.append('…')
      continue
    names.append(style.shortened(name_of(analysis, label), most))
    value = change[label]
    color = LIGHT.rose if value < 0 else LIGHT.student
    axes.barh(y, value, height=0.62, color=color, linewidth=0)
    axes.annotate(
      f'{value:+.1f}'.replace('-', '\N{MINUS SIGN}') if value else '0',
      (value, y),
      xytext=(-5 if value < 0 else 5, 0),
      textcoords='offset points',
      ha='right' if value < 0 else 'left',
      va='center_baseline',
      color=color if value else LIGHT.faint,
      fontsize=size.text - 0.5,
    )
  low = min(0.0, *(change[i] for i in order))
  high = max(0.0, *(change[i] for i in order))
  room = (0.26 if size.narrow else 0.17) * (high - low) or 1.0
  axes.set_xlim(low - room * (1 if low < 0 else 0.1), high + room)
  axes.set_ylim(len(shown) - 0.5, -0.5)
  axes.set_yticks(range(len(shown)), names)
  axes.tick_params(axis='y', labelcolor=LIGHT.ink)
  axes.set_xticks([])
  axes.axvline(0, color=LIGHT.faint, linewidth=1)
  return figure
