"""What the student takes for what: the matrix, the most confused pairs."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colors, ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cbkd_jax.reporting import style
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.style import LIGHT, Size

NAMED = 20  # classes up to which each has its name and number in a figure
_PAIRS = 12  # confused pairs in a list
_LEGIBLE = 7.5  # pixels of the smallest number


def name_of(analysis: Analysis, label: int) -> str:
  """A class's name on one line."""
  return ' '.join(analysis.class_names[label].split()) or str(label)


class Pair(NamedTuple):
  """A class that the student takes for another one."""

  label: int
  predicted: int
  student: int  # examples
  teacher: int


def pairs(analysis: Analysis) -> list[Pair]:
  """Every confusion of the student, the most frequent first."""
  found = [
    Pair(
      int(i),
      int(j),
      int(analysis.confusion[i, j]),
      int(analysis.teacher_confusion[i, j]),
    )
    for i, j in np.argwhere(analysis.confusion)
    if i != j
  ]
  return sorted(found, key=lambda p: (-p.student, p.label, p.predicted))


def confusion(analysis: Analysis) -> Drawn:
  """The confusion matrix of the student."""
  few = len(analysis.class_names) <= NAMED
  return Drawn(
    name='confusion',
    title='What the student says, by true class',
    says=_confusion_says(analysis),
    notes=(
      'A row is a true class, a column what the student says; the colour is '
      'the share of the row.'
      + (' Numbers are test images.' if few else ' Classes in label order.')
    ),
    rows=[
      {
        'label': i,
        'class': analysis.class_names[i],
        'predicted': j,
        'predicted_class': analysis.class_names[j],
        'student': int(analysis.confusion[i, j]),
        'teacher': int(analysis.teacher_confusion[i, j]),
      }
      for i, j in np.argwhere(analysis.confusion + analysis.teacher_confusion)
    ],
    draw=lambda size: (_draw_named if few else _draw_many)(analysis, size),
  )


def _confusion_says(analysis: Analysis) -> str:
  found = pairs(analysis)
  wrong = int((analysis.student_predictions != analysis.labels).sum())
  if not found:
    return 'The student makes no mistake on these images.'
  own = analysis.student_predictions == analysis.labels
  teachers = analysis.teacher_predictions == analysis.labels
  new = int((teachers & ~own).sum())
  first = found[0]
  said = (
    f'The student is wrong on {wrong:,} of {len(analysis.labels):,} images, '
    f'{new:,} of which the teacher has right; '
  )
  if first.student == 1:
    return f'{said}no confusion happens twice.'
  one, other = (name_of(analysis, i) for i in (first.label, first.predicted))
  said += f'most often, {first.student:,} times, it takes "{one}" for '
  return f'{said}"{other}".'


def _shares(analysis: Analysis) -> np.ndarray:
  """The confusion matrix, each row divided by its sum."""
  counts = analysis.confusion
  return counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _draw_named(analysis: Analysis, size: Size) -> Figure:
  classes, shares = len(analysis.class_names), _shares(analysis)
  names = _short_names(analysis, 9 if size.narrow else 16)
  longest = max(map(len, names))
  side = min(size.width - 16 - 7.5 * longest, 46 * classes)
  upright = longest * size.text * 0.62 > side / classes
  height = side + 26 + (7 * longest if upright else 14)
  figure = style.new_figure(size, height)
  axes = style.frame(figure.add_subplot(), grid='')
  for i, j in np.ndindex(classes, classes):
    _draw_cell(axes, (i, j), analysis.confusion[i, j], shares[i, j])
    count = f'{analysis.confusion[i, j]}'
    text = min(
      size.text, 0.62 * side / classes, 1.5 * side / classes / len(count)
    )
    if count != '0' and text >= _LEGIBLE:
      axes.text(
        j,
        i,
        count,
        ha='center',
        va='center_baseline',
        color=LIGHT.paper if shares[i, j] > 0.5 else LIGHT.ink,
        fontsize=text,
      )
  axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5))
  axes.set_aspect('equal')
  axes.set_xticks(range(classes), names, rotation=90 if upright else 0)
  axes.set_yticks(range(classes), names)
  axes.xaxis.tick_top()
  axes.tick_params(labelcolor=LIGHT.ink, pad=2, labelsize=size.text - 0.5)
  return figure


def _short_names(analysis: Analysis, most: int) -> list[str]:
  """The classes' names; with their labels where some would look alike."""
  full = [name_of(analysis, i) for i in range(len(analysis.class_names))]
  names = [style.shortened(name, most) for name in full]
  if len(set(names)) == len(set(full)):
    return names
  return [
    f'{i} {style.shortened(name, most - 3)}' for i, name in enumerate(full)
  ]


def _draw_cell(
  axes: Axes, place: tuple[int, int], count: int, share: float
) -> None:
  i, j = place
  looks = {'facecolor': LIGHT.grid, 'alpha': 0.45}
  if count:  # what happens at all is seen
    color = LIGHT.student if i == j else LIGHT.rose
    looks = {'facecolor': color, 'alpha': 0.15 + 0.85 * share}
  axes.add_patch(Rectangle((j - 0.47, i - 0.47), 0.94, 0.94, lw=0, **looks))


def _draw_many(analysis: Analysis, size: Size) -> Figure:
  """The matrix without words: an image, however many classes there are."""
  classes = len(analysis.class_names)
  figure = style.new_figure(size, size.width + 6)
  axes = style.frame(figure.add_subplot(), grid='')
  shares = _shares(analysis)
  image = np.zeros((classes, classes, 4))
  image[..., :3] = colors.to_rgb('#d0508c')
  image[np.arange(classes), np.arange(classes), :3] = colors.to_rgb('#2fa377')
  # A single mistake in a hundred has to be seen.
  image[..., 3] = np.where(shares > 0, 0.35 + 0.65 * np.sqrt(shares), 0)
  axes.imshow(image, interpolation='none', aspect='equal')
  for spine in axes.spines.values():
    spine.set(visible=True, color=LIGHT.grid)
  for axis in axes.xaxis, axes.yaxis:
    axis.set_major_locator(ticker.MaxNLocator(5, integer=True))
  axes.xaxis.tick_top()
  axes.xaxis.set_label_position('top')
  axes.set_xlabel('what the student says')
  axes.set_ylabel('true class')
  return figure


def confused(analysis: Analysis) -> Drawn | None:
  """The most confused pairs as bars; None with few classes, or without any."""
  found = pairs(analysis)
  if len(analysis.class_names) <= NAMED or not found:
    return None
  top = found[:_PAIRS]
  return Drawn(
    name='confused',
    title='The most confused pairs',
    says=(
      f'The {len(top)} most frequent confusions are '
      f'{sum(p.student for p in top) / sum(p.student for p in found):.0%} of '
      f"the student's mistakes: {sum(p.student for p in top):,}, where the "
      f'teacher makes {sum(p.teacher for p in top):,}.'
    ),
    notes='True class → what is said; test images.',
    rows=[
      {
        'class': analysis.class_names[p.label],
        'predicted_class': analysis.class_names[p.predicted],
        'student': p.student,
        'teacher': p.teacher,
      }
      for p in found
    ],
    draw=lambda size: _draw_pairs(analysis, top, size),
  )


def _draw_pairs(analysis: Analysis, top: Sequence[Pair], size: Size) -> Figure:
  most = 16 if size.narrow else 32
  figure = style.new_figure(size, 20 + 40 * len(top))
  axes = style.frame(figure.add_subplot(), grid='')
  names = []
  for i, pair in enumerate(top):
    for value, color, up in (
      (pair.teacher, LIGHT.teacher, -0.17),
      (pair.student, LIGHT.student, 0.17),
    ):
      axes.barh(i + up, value, height=0.3, color=color, linewidth=0)
      _word(axes, f'{value:,}', value, i + up, color, size)
    one, other = (
      style.shortened(name_of(analysis, label), most)
      for label in (pair.label, pair.predicted)
    )
    names.append(f'{one}\n→ {other}')
  longest = max(max(p.student, p.teacher) for p in top)
  axes.set_xlim(0, 1.2 * longest)
  axes.set_ylim(len(top) - 0.5, -0.5)
  axes.set_yticks(range(len(top)), names)
  axes.tick_params(axis='y', labelcolor=LIGHT.ink)
  axes.set_xticks([])
  axes.axvline(0, color=LIGHT.faint, linewidth=1)
  return figure


def _word(
  axes: Axes, words: str, x: float, y: float, color: str, size: Size
) -> None:
  axes.annotate(
    words,
    (x, y),
    xytext=(5, 0),
    textcoords='offset points',
    va='center_baseline',
    color=color,
    fontsize=size.text - 0.5,
  )
