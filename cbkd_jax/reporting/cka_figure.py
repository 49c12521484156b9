"""How alike teacher's and student's features are at each cut."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure

from cbkd_jax.reporting import style
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.style import LIGHT, Size


def cka(analysis: Analysis) -> Drawn | None:
  """The figure of similarity at each cut; None where there were no images."""
  if not analysis.cka:
    return None
  return Drawn(
    name='cka',
    title='How alike the features are',
    says=_says([pair for pair in analysis.cka if math.isfinite(pair[1])]),
    notes=(
      f'Linear CKA between teacher and student on {analysis.cka_examples:,} '
      "test images: 1 where one's features are the other's, rotated or scaled; "
      'about 0 where they have nothing in common.'
    ),
    rows=[{'cut': name, 'cka': value} for name, value in analysis.cka],
    draw=lambda size: _draw(analysis.cka, size),
  )


def _says(found: Sequence[tuple[str, float]]) -> str:
  if not found:
    return 'No cut has features that differ between images.'
  name, least = min(found, key=lambda pair: pair[1])
  last, end = found[-1]
  if name == last:
    best, most = max(found, key=lambda pair: pair[1])
    return (
      f'The features are least alike at the end, {last}: {least:.3f}; most at '
      f'{best}: {most:.3f}.'
    )
  return (
    f'The features are least alike after {name}: {least:.3f}; at the end, '
    f'{last}, they are at {end:.3f}.'
  )


def _draw(found: Sequence[tuple[str, float]], size: Size) -> Figure:
  figure = style.new_figure(size, 50 + 32 * len(found))
  axes = style.frame(figure.add_subplot(), grid='x')
  for i, (_, value) in enumerate(found):
    defined = math.isfinite(value)
    axes.plot([0, value], [i, i], color=LIGHT.student, linewidth=2.5)
    axes.plot(
      value,
      i,
      marker='o',
      markersize=10,
      color=LIGHT.student,
      markeredgecolor=LIGHT.paper,
      clip_on=False,
    )
    axes.annotate(
      f'{value:.3f}' if defined else 'none',
      (1.03, i),
      xytext=(6, 0),
      textcoords='offset points',
      va='center_baseline',
      color=LIGHT.student,
      fontweight='bold',
      annotation_clip=False,
    )
  low = min([0.0, *(v for _, v in found if math.isfinite(v))])
  axes.set_xlim(low, 1.03)
  axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ['0', '.25', '.5', '.75', '1'])
  axes.set_ylim(len(found) - 0.4, -0.6)
  axes.set_yticks(range(len(found)), [name for name, _ in found])
  axes.tick_params(axis='y', labelcolor=LIGHT.ink)
  return figure
