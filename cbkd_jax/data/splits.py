"""Split expressions as TFDS writes them: 'train', 'train[:500]', 'test[20%:]'.

For sets that TFDS does not know.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cbkd_jax.errors import UserError

_SPLIT = re.compile(r'([^\[\]]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?')


@dataclass(frozen=True)
class Part:
  """A part of a split.

  Attributes:
    split: its name.
    first: where it begins: '100', '-20%'; None: at the first example.
    last: where it ends, likewise.
    said: the field and its value, for messages.
    title: of the set.
  """

  split: str
  first: str | None
  last: str | None
  said: str
  title: str

  def of(self, size: int) -> slice:
    """The part of a split's `size` examples.

    Raises:
      UserError: it is empty or out of range.
    """
    start = _boundary(self.first, size, 0)
    stop = _boundary(self.last, size, size)
    if not 0 <= start < stop <= size:
      raise UserError(
        f'{self.said} must select some of the {size} {self.split} examples of '
        f'{self.title}, but stands for {start} to {stop}'
      )
    return slice(start, stop)


def parse(
  expression: str, field: str, title: str, splits: Sequence[str]
) -> Part:
  """Reads a split expression.

  Args:
    expression: a split, or a slice of one.
    field: the config field that errors name.
    title: of the set.
    splits: that it has.

  Raises:
    UserError: malformed, or of a split that is not there.
  """
  match = _SPLIT.fullmatch(expression)
  if not match or match[1] not in splits:
    known = ', '.join(repr(s) for s in splits[:8])
    known += ', ...' if len(splits) > 8 else ''
    hint = ''
    if len(splits) == 1:
      hint = (
        f": data.train_split = '{splits[0]}[:80%]' and data.test_split = "
        f"'{splits[0]}[80%:]' divide it"
      )
    raise UserError(
      f'{field} = {expression!r}, but {title} has {known} and slices like '
      f"'train[:100]' or 'train[10%:-10%]'{hint}"
    )
  return Part(*match.groups(), f'{field} = {expression!r}', title)


def _boundary(text: str | None, size: int, default: int) -> int:
  """One side of a slice in examples; percents go to the closest example."""
  if text is None:
    return default
  if text.endswith('%'):
    value = round(int(text[:-1]) * size / 100)
  else:
    value = int(text)
  return value + size if value < 0 else value
