"""How figures look: colours by role, sizes, frames; from matplotlib to SVG.

A figure is drawn with the light palette. In its SVG each colour is a CSS
variable instead, named by its role, so that the page's colour scheme is the
figure's.
"""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation, Transform


class Palette(NamedTuple):
  """A colour for each role; no two are equal."""

  paper: str
  ink: str
  faint: str
  grid: str
  teacher: str
  student: str
  amber: str
  violet: str
  rose: str
  cyan: str
  olive: str


LIGHT = Palette(
  paper='#fefefe',
  ink='#1b2530',
  faint='#5b6775',
  grid='#e2e6ea',
  teacher='#1f57a8',
  student='#17805a',
  amber='#a85a00',
  violet='#7440c4',
  rose='#b8256e',
  cyan='#0b7790',
  olive='#69700f',
)
DARK = Palette(
  paper='#161b22',
  ink='#e7ebf0',
  faint='#9da8b5',
  grid='#2b333d',
  teacher='#6ca8ff',
  student='#45c990',
  amber='#f0a94e',
  violet='#b99af7',
  rose='#f585b4',
  cyan='#4cc4dd',
  olive='#c0c95a',
)
# For what is neither teacher nor student: controls, terms of a loss.
OTHERS = (LIGHT.amber, LIGHT.violet, LIGHT.rose, LIGHT.cyan, LIGHT.olive)
# They differ by more than colour.
DASHES = ((0, (5, 2)), (0, (1, 1.4)), (0, (7, 2, 1, 2)), (0, (3, 1)), 'solid')
MARKERS = ('D', '^', 'v', 'P', 'X')


class Size(NamedTuple):
  """A figure's width in pixels, and its text's."""

  name: str
  width: int
  text: float

  @property
  def narrow(self) -> bool:
    return self is NARROW


# The narrow one is a phone's, the wide one half a desk's screen.
NARROW = Size('narrow', 340, 12)
WIDE = Size('wide', 560, 12.5)

_SETTINGS = {
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],
  'axes.axisbelow': True,
  'hatch.linewidth': 0.8,
  'svg.fonttype': 'none',  # text stays text
  'text.hinting': 'none',  # as wide in a browser as it is measured here
  'text.parse_math': False,  # a dollar in a class's name is a dollar
}


@contextlib.contextmanager
def settings(size: Size) -> Iterator[None]:
  """Matplotlib's settings while a figure is drawn or saved."""
  with (
    matplotlib.rc_context({**_SETTINGS, 'font.size': size.text}),
    warnings.catch_warnings(),
  ):
    # In a page the browser's fonts have what this one lacks.
    warnings.filterwarnings('ignore', r'Glyph \d+ .* missing from font')
    yield


def new_figure(size: Size, height: float, laid_out: bool = True) -> Figure:
  """An empty figure.

  Args:
    size: its width and text.
    height: in pixels.
    laid_out: whether axes are placed such that all text is inside.
  """
  figure = Figure(
    figsize=(size.width / 72, height / 72),  # a point is a pixel
    layout='constrained' if laid_out else None,
    facecolor=LIGHT.paper,
  )
  FigureCanvasAgg(figure)
  if laid_out:
    figure.get_layout_engine().set(w_pad=4 / 72, h_pad=4 / 72)
  return figure


def frame(axes: Axes, grid: str = 'y') -> Axes:
  """Axes without a box: faint numbers, a light grid along what is read off."""
  axes.set_facecolor('none')
  for spine in axes.spines.values():
    spine.set_visible(False)
  axes.tick_params(
    colors=LIGHT.faint, which='both', length=0, labelsize='medium', pad=5
  )
  if grid:
    axes.grid(axis=grid, color=LIGHT.grid, linewidth=1)
  axes.xaxis.label.set_color(LIGHT.faint)
  axes.yaxis.label.set_color(LIGHT.faint)
  return axes


def percent_axis(axis: matplotlib.axis.Axis, ticks: int = 5) -> None:
  """Numbers of an axis of fractions, as percentages."""
  axis.set_major_locator(ticker.MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
  axis.set_major_formatter(
    ticker.FuncFormatter(lambda x, _: f'{100 * x:.4g} %')
  )


def spread(
  places: Sequence[float], apart: float, low: float, high: float
) -> list[float]:
  """Moves labels as little as it takes to keep them apart.

  Args:
    places: where each wants to be.
    apart: the least distance of two.
    low: the least place.
    high: the greatest place; where there is no room for all they touch.

  Returns:
    Where each goes, in the order of `places`.
  """
  order = sorted(range(len(places)), key=lambda i: places[i])
  if len(order) > 1:
    apart = min(apart, (high - low) / (len(order) - 1))
  found = [0.0] * len(places)
  last = low - apart
  for i in order:
    last = found[i] = max(min(places[i], high), last + apart)
  last = high + apart
  for i in reversed(order):
    last = found[i] = min(found[i], last - apart)
  return found


def show_all(axes: Axes, lows: Sequence[float], highs: Sequence[float]) -> None:
  """Sets the height's limits around what is drawn, with some air.

  Args:
    axes: whose limits are set.
    lows: lower ends.
    highs: upper ends.
  """
  low, high = min(lows), max(highs)
  air = 0.16 * (high - low) or 0.01
  axes.set_ylim(low - air, high + air)


def aside(axes: Axes, index: int, count: int, apart: float) -> Transform:
  """The data's place, moved sideways so that `count` marks stand abreast.

  Args:
    axes: where the marks go.
    index: which of them.
    count: how many have one place.
    apart: pixels between two.
  """
  right = (index - (count - 1) / 2) * apart / 72
  move = ScaledTranslation(right, 0, axes.get_figure().dpi_scale_trans)
  return axes.transData + move


def label_ends(
  axes: Axes, entries: Sequence[tuple[float, str, str]], size: Size
) -> None:
  """Writes words to the right of axes, each at its height, none on another.

  Args:
    axes: their limits are final.
    entries: height in the axes' numbers, words, colour.
    size: the figure's.
  """
  if not entries:
    return
  figure = axes.get_figure()
  lines = max(words.count('\n') + 1 for _, words, _ in entries)
  for _, words, _ in entries:  # room for the longest one, found by the layout
    axes.annotate(
      words,
      (1, 0.5),
      xycoords='axes fraction',
      xytext=(8, 0),
      textcoords='offset points',
      alpha=0,
    )
  settled(figure)
  for text in list(axes.texts[-len(entries) :]):
    text.remove()
  box = axes.get_window_extent()
  pixel = figure.dpi / 72
  at = [axes.transData.transform((0, y))[1] - box.y0 for y, _, _ in entries]
  half = 0.55 * size.text * lines * pixel
  places = spread(at, 2.4 * half, 0.8 * half, box.height - 0.8 * half)
  for (_, words, color), place in zip(entries, places):
    axes.annotate(
      words,
      (1, place / box.height),
      xycoords='axes fraction',
      xytext=(8, 0),
      textcoords='offset points',
      va='center',
      color=color,
      linespacing=1.15,
    )


def label_points(
  axes: Axes,
  entries: Sequence[tuple[tuple[float, float], str, str]],
  size: Size,
) -> None:
  """Writes words beside points, none on another.

  Points above one another have theirs in a column to the right, or to the
  left where there is no room.

  Args:
    axes: their limits are final.
    entries: a point in the axes' numbers, its words of two lines, its colour.
    size: the figure's.
  """
  figure = settled(axes.get_figure())
  pixel = figure.dpi / 72
  box = axes.get_window_extent()
  at = axes.transData.transform([point for point, _, _ in entries])
  at = (at - (box.x0, box.y0)) / pixel
  right, top = box.width / pixel, box.height / pixel
  columns: list[list[int]] = []
  for i in sorted(range(len(entries)), key=lambda i: at[i][0]):
    if columns and at[i][0] - at[columns[-1][0]][0] < 24:
      columns[-1].append(i)
    else:
      columns.append([i])
  tall = 2.5 * size.text
  covered = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
  for column in columns:
    wide = max(
      0.62 * size.text * max(map(len, entries[i][1].split('\n')))
      for i in column
    )
    tried = []
    for away in (0, *(s * k * 9 for k in range(1, 14) for s in (1, -1))):
      heights = [at[i][1] + away for i in column]
      places = spread(heights, tall, tall / 2, top - tall / 2)
      for side in (1, -1):
        left = (
          max(at[i][0] for i in column) + 8 + 4 * len(column)
          if side > 0
          else min(at[i][0] for i in column) - 8 - 4 * len(column) - wide
        )
        boxes = [
          (left, y - tall / 2, left + wide, y + tall / 2) for y in places
        ]
        hidden = sum(_overlap(b, other) for b in boxes for other in covered)
        outside = max(0, -left) + max(0, left + wide - right)
        tried.append((hidden + 40 * outside, abs(away), side, left, places))
    _, _, side, left, places = min(tried, key=lambda t: t[:2])
    for i, y in zip(column, places):
      covered.append((left, y - tall / 2, left + wide, y + tall / 2))
      x = left if side > 0 else left + wide
      axes.annotate(
        entries[i][1],
        at[i] / (right, top),
        xycoords='axes fraction',
        xytext=((x - at[i][0]), (y - at[i][1])),
        textcoords='offset points',
        ha='left' if side > 0 else 'right',
        va='center',
        color=entries[i][2],
        linespacing=1.15,
        annotation_clip=False,
      )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
  """The area that two boxes (left, low, right, high) have in common."""
  wide = min(one[2], other[2]) - max(one[0], other[0])
  high = min(one[3], other[3]) - max(one[1], other[1])
  return max(0.0, wide) * max(0.0, high)


def shortened(text: str, most: int) -> str:
  """At most so many characters; of names that begin alike the ends tell."""
  if len(text) <= most:
    return text
  end = (most - 1) // 3
  return f'{text[: most - 1 - end].rstrip()}…{text[len(text) - end :].lstrip()}'


def settled(figure: Figure) -> Figure:
  """The figure with its layout found, once for all files."""
  figure.draw_without_rendering()
  figure.set_layout_engine(None)
  return figure


def png(figure: Figure) -> bytes:
  """The figure as an image of two pixels per pixel."""
  out = io.BytesIO()
  figure.savefig(out, format='png', dpi=144, facecolor=LIGHT.paper)
  return out.getvalue()


def svg(figure: Figure, key: str, label: str) -> str:
  """The figure as an element of a page.

  Args:
    figure: drawn in the light palette.
    key: of no other figure in the page; begins all its ids.
    label: what a screen reader says; is escaped.

  Returns:
    An `<svg>` without a size of its own, its colours and font CSS variables.
  """
  out = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': key}):
    figure.savefig(out, format='svg', transparent=True)
  text = out.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  text = re.sub(r'<style.*?</style>\s*', '', text, flags=re.DOTALL)
  text = re.sub(r'<!--.*?-->\s*', '', text, flags=re.DOTALL)
  text = _with_own_ids(text, key)
  for role, color in LIGHT._asdict().items():
    text = text.replace(color, f'var(--{role})')
  text = re.sub(r"'DejaVu Sans'[^;\"]*", 'var(--font)', text)
  head, rest = text.split('>', 1)
  (box,) = re.findall(r'viewBox="[^"]*"', head)
  label = html.escape(label)
  names = 'xmlns="http://www.w3.org/2000/svg"'
  names += ' xmlns:xlink="http://www.w3.org/1999/xlink"'
  return f'<svg {names} {box} role="img" aria-label="{label}">{rest.rstrip()}'


def _with_own_ids(text: str, key: str) -> str:
  """Ids that nothing refers to go; others begin with the key."""
  used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))

  def new_id(match: re.Match[str]) -> str:
    return f' id="{key}-{match[1]}"' if match[1] in used else ''

  text = re.sub(r' id="([^"]*)"', new_id, text)
  return re.sub(r'(url\(#|href="#)', rf'\g<1>{key}-', text)


def css(palette: Palette) -> str:
  """The palette as CSS declarations."""
  return ' '.join(f'--{k}: {v};' for k, v in palette._asdict().items())
