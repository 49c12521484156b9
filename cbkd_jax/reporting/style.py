"""How figures look: colours by role, sizes, frames.

A figure is drawn with the light palette. In its SVG each colour is a CSS
variable instead, named by its role, so that the page's colour scheme is the
figure's.
"""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


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


def shortened(text: str, most: int) -> str:
  """At most so many characters; of names that begin alike the ends tell."""
  if len(text) <= most:
    return text
  end = (most - 1) // 3
  return f'{text[: most - 1 - end].rstrip()}…{text[len(text) - end :].lstrip()}'


def css(palette: Palette) -> str:
  """The palette as CSS declarations."""
  return ' '.join(f'--{k}: {v};' for k, v in palette._asdict().items())
