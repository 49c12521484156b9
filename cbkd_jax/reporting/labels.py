"""Words beside what they name, none on another; marks that stand abreast."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation, Transform

from cbkd_jax.reporting import vector
from cbkd_jax.reporting.style import Size


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


def beside_lines(
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
  vector.settled(figure)
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


def beside_points(
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
  figure = vector.settled(axes.get_figure())
  pixel = figure.dpi / 72
  box = axes.get_window_extent()
  at = axes.transData.transform([point for point, _, _ in entries])
  at = (at - (box.x0, box.y0)) / pixel
  right, top = box.width / pixel, box.height / pixel
  tall = 2.5 * size.text
  covered = [(x - 7, y - 7, x + 7, y + 7) for x, y in at]
  for column in _columns(at):
    wide = max(
      0.62 * size.text * max(map(len, entries[i][1].split('\n')))
      for i in column
    )
    side, left, heights = _place(
      [at[i] for i in column], (wide, tall), (right, top), covered
    )
    for i, y in zip(column, heights):
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


def _columns(at: Sequence[Sequence[float]]) -> list[list[int]]:
  """Points that are above one another, by number, from left to right."""
  columns: list[list[int]] = []
  for i in sorted(range(len(at)), key=lambda i: at[i][0]):
    if columns and at[i][0] - at[columns[-1][0]][0] < 24:
      columns[-1].append(i)
    else:
      columns.append([i])
  return columns


def _place(
  points: Sequence[Sequence[float]],
  label: tuple[float, float],
  room: tuple[float, float],
  covered: Sequence[Sequence[float]],
) -> tuple[int, float, list[float]]:
  """Where a column's labels cover least.

  Args:
    points: the column's, in pixels.
    label: width and height of each.
    room: of the axes.
    covered: boxes that are taken.

  Returns:
    The side (1: right, -1: left), the left end, and each label's height.
  """
  (wide, tall), (right, top) = label, room
  away_from = 8 + 4 * len(points)
  tried = []
  for away in (0, *(s * k * 9 for k in range(1, 14) for s in (1, -1))):
    wanted = [y + away for _, y in points]
    heights = spread(wanted, tall, tall / 2, top - tall / 2)
    for side in (1, -1):
      left = max(x for x, _ in points) + away_from
      if side < 0:
        left = min(x for x, _ in points) - away_from - wide
      boxes = [(left, y - tall / 2, left + wide, y + tall / 2) for y in heights]
      hidden = sum(_overlap(box, other) for box in boxes for other in covered)
      outside = max(0, -left) + max(0, left + wide - right)
      tried.append((hidden + 40 * outside, abs(away), side, left, heights))
  _, _, side, left, heights = min(tried, key=lambda t: t[:2])
  return side, left, heights


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


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
  """The area that two boxes (left, low, right, high) have in common."""
  wide = min(one[2], other[2]) - max(one[0], other[0])
  high = min(one[3], other[3]) - max(one[1], other[1])
  return max(0.0, wide) * max(0.0, high)
