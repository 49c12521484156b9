"""A figure of a report: what it shows, in words, numbers and two sizes."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from cbkd_jax.reporting import style
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

  def svgs(self, prefix: str = '') -> dict[str, str]:
    """Both sizes for a page, by the size's name.

    Args:
      prefix: tells the figures of several runs in a page apart.
    """
    label = f'{self.title}. {self.says}'
    found = {}
    for size in NARROW, WIDE:
      with style.settings(size):
        key = f'{prefix}{self.name}-{size.name}'
        found[size.name] = style.svg(self.draw(size), key, label)
    return found

  def write(self, directory: Path, prefix: str = '') -> None:
    """Writes NAME.png and NAME.csv.

    Args:
      directory: exists; may be in a bucket.
      prefix: stands before the name.
    """
    with style.settings(WIDE):
      image = style.png(self.draw(WIDE))
    (directory / f'{prefix}{self.name}.png').write_bytes(image)
    (directory / f'{prefix}{self.name}.csv').write_text(self.csv())

  def csv(self) -> str:
    """The numbers, a header first; None is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(self.rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(self.rows)
    return out.getvalue()
