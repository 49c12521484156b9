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
  several depths. A method of `pre_activations` looks at these in place of the
  features.
  """

  at: str | int | tuple = 'cuts'

  may_pool: ClassVar[bool] = False
  whole: ClassVar[bool] = False
  pre_activations: ClassVar[bool] = False

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
    """What it compares of a network.

    Args:
      view: the network's.

    Returns:
      Maps `[batch, h, w, c]` by place, or the vector `[batch, c]` alone.
    """
    if self.at == 'pooled':
      return (view.pooled,)
    maps = view.pre_activations if self.pre_activations else view.features
    return tuple(maps[i] for i in self.places)

  def pairs(
    self, student_view: View, teacher_view: View
  ) -> list[tuple[int, jax.Array, jax.Array]]:
    """(block, the student's map, the teacher's) per place.

    Args:
      student_view: the student's.
      teacher_view: the teacher's.

    Returns:
      As many triples as there are places; not for `at='pooled'`.
    """
    maps = self.look(student_view), self.look(teacher_view)
    return list(zip(self.places, *maps, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consecutive(Looking):
  """A method that relates each of its places to the one before it.

  Of the constant blocks the last one alone counts, as the partner of the
  first that the phase can change.
  """

  whole: ClassVar[bool] = True

  @property
  def places(self) -> tuple[int, ...]:
    found = super().places
    first = min(self.setting.trained)
    constant = sum(i < first for i in found)
    return found[max(constant - 1, 0) :]

  def check_places(self) -> None:
    """Refuses a single place.

    Raises:
      UserError: there is no pair of blocks.
    """
    if len(self.places) < 2:
      raise UserError(
        f'{self.name}.at = {self.at!r}: {self.name} relates a block to an '
        f'earlier one, and this is block {self.places[0]} alone'
      )


def resolve(
  at: str | int | tuple[int, ...], setting: Setting, option: str, whole: bool
) -> tuple[int, ...]:
  """The block indices that `at` means in a phase; see `Looking`.

  Args:
    at: a valid value of the option.
    setting: the phase.
    option: its name in messages.
    whole: whether constant blocks count.

  Returns:
    Indices, ascending.

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
