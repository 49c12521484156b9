"""Where a method looks: the option `at`."""

import dataclasses
from typing import ClassVar

import jax

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import Method, Setting

_WORDS = ('cuts', 'trained', 'middle', 'last')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Looking(Method):
  """A method that looks at blocks' outputs, chosen by `at`.

  `at` is a block's index, a tuple of them, or a word:
    'cuts': the end of every block;
    'trained': the end of the blocks that train;
    'middle': block B // 2, the published hint layer;
    'last': the deepest block;
    'pooled': the vector in front of the classifier (where `may_pool`).

  Words mean blocks that the phase can change: what lies before the first
  trained block is constant and left out ('middle' then is the first trained
  block). `whole` keeps those blocks too, for methods that mix features of
  several depths.
  """

  at: str | int | tuple = 'cuts'

  may_pool: ClassVar[bool] = False
  whole: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    words = (*_WORDS, 'pooled') if self.may_pool else _WORDS
    indices = self.at if isinstance(self.at, tuple) else (self.at,)
    if isinstance(self.at, str):
      valid = self.at in words
    else:
      valid = bool(indices) and all(
        isinstance(i, int) and not isinstance(i, bool) and i >= 0
        for i in indices
      )
    if not valid or len(set(indices)) < len(indices):
      self.fail(
        'at',
        ', '.join(map(repr, words)) + ', or different block indices from 0',
      )

  @property
  def places(self) -> tuple[int, ...]:
    """The blocks it looks at, ascending; empty for 'pooled'.

    Raises:
      UserError: a block that the network lacks, or only constant ones.
    """
    return resolve(self.at, self.setting, f'{self.name}.at', self.whole)

  def look(self, view: View) -> tuple[jax.Array, ...]:
    """The features it compares: maps, or the pooled vector alone."""
    if self.at == 'pooled':
      return (view.pooled,)
    return tuple(view.features[i] for i in self.places)


def resolve(
  at: str | int | tuple[int, ...], setting: Setting, option: str, whole: bool
) -> tuple[int, ...]:
  """The block indices that `at` means in a phase; see `Looking`.

  Args:
    at: a valid value of the option.
    setting: the phase.
    option: its name in messages.
    whole: whether constant blocks count.

  Raises:
    UserError: see `Looking.places`.
  """
  blocks = setting.blocks
  first = min(setting.trained)
  start = 0 if whole else first
  if at == 'pooled':
    return ()
  if at == 'cuts':
    return tuple(range(start, blocks))
  if at == 'trained':
    return setting.trained
  if at == 'middle':
    return (max(blocks // 2, first),)
  if at == 'last':
    return (blocks - 1,)
  chosen = sorted(at) if isinstance(at, tuple) else [at]
  if chosen[-1] >= blocks:
    raise UserError(
      f'{option} = {at!r}: this network has blocks 0 to {blocks - 1}'
    )
  found = tuple(i for i in chosen if i >= start)
  if not any(i >= first for i in found):
    raise UserError(
      f'{option} = {at!r}: {setting.name} changes nothing before block '
      f"{first}; allowed are blocks {first} to {blocks - 1} or 'trained'"
    )
  return found
