"""A figure of a report: what it shows, in words, numbers and two sizes."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cbkd_jax.reporting import style, vector
from cbkd_jax.reporting.style import NARROW, WIDE, Size


class Drawn(NamedTuple):
  """A figure that can be drawn.

  Attributes:
    name: of its files and of its place in a page; of no other of the run.
    title: what it is, in a few words.
    says: what is to be seen, in a sentence computed from the numbers.
    rows: its numbers, all with the same keys.
    draw: makes it in a size.
    notes: how it is to be read.
  """

  name: str
  title: str
  says: str
  rows: Sequence[Mapping[str, Any]]
  draw: Callable[[Size], Figure]
  notes: str = ''

  def render(self, prefix: str = '') -> 'Rendered':
    """Draws it in both sizes.

    Args:
      prefix: stands before the name; tells several runs' figures apart.
    """
    key, label = f'{prefix}{self.name}', f'{self.title}. {self.says}'
    with style.settings(NARROW):
      figure = vector.settled(self.draw(NARROW))
      narrow = vector.svg(figure, f'{key}-narrow', label)
    with style.settings(WIDE):
      figure = vector.settled(self.draw(WIDE))
      wide = vector.svg(figure, f'{key}-wide', label)
      image = vector.png(figure)
    return Rendered(key, self, narrow, wide, image)

  def csv(self) -> str:
    """The numbers, a header first; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(self.rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(self.rows)
    return out.getvalue()


class Rendered(NamedTuple):
  """A figure as it goes into a page and into files.

  Attributes:
    key: its name in the page and of its files.
    drawn: what it shows.
    narrow: an `<svg>` for a phone.
    wide: one for a desk.
    image: the wide one as PNG.
  """

  key: str
  drawn: Drawn
  narrow: str
  wide: str
  image: bytes

  def write(self, directory: Path) -> None:
    """Writes KEY.png and KEY.csv.

    Args:
      directory: exists; may be in a bucket.
    """
    (directory / f'{self.key}.png').write_bytes(self.image)
    (directory / f'{self.key}.csv').write_text(
      self.drawn.csv(), encoding='utf-8'
    )
