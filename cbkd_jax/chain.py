"""The best choice in a chain of blocks, found exactly.

A block's cost depends on its own candidate and on that of the block before
alone. So of the choices for the first blocks that end with one candidate, only
those go on than which no other is cheaper and less harmful.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class BlockCosts:
  """The candidates of one compressed block and what each costs.

  A candidate costs `own + per_channel * channels of the block before`.

  Attributes:
    keep: keep ratios, descending, no two of the same width.
    channels: per candidate, what it hands on to the next block; where the
      next one has no `reduce`, of no meaning.
    own: per candidate, the cost that does not depend on the block before; of
      the deepest block with the head's, of the first compressed one all.
    per_channel: per candidate, the cost of its `reduce` per channel that it
      reads; 0 in the first compressed block.
  """

  keep: tuple[float, ...]
  channels: tuple[int, ...]
  own: tuple[float, ...]
  per_channel: tuple[float, ...]


class Best(NamedTuple):
  cost: float
  choice: tuple[int, ...]


class Choices(NamedTuple):
  """Choices for the first so many blocks, one a row."""

  cost: np.ndarray
  damage: np.ndarray
  choice: np.ndarray

  def best(self, *keys: np.ndarray) -> Best | None:
    """The smallest by `keys`, then by the indices, if there is any."""
    if not len(self.cost):
      return None
    first = self.sorted(*keys)
    return Best(float(first.cost[0]), tuple(map(int, first.choice[0])))

  def sorted(self, *keys: np.ndarray) -> 'Choices':
    # Of lexsort's keys the last one is the first to be looked at.
    order = np.lexsort((*self.choice.T[::-1], *keys[::-1]))
    return Choices(*(array[order] for array in self))

  def pruned(self, best_only: bool) -> 'Choices':
    """Without those that others of the same last candidate make useless.

    Args:
      best_only: an equally cheap or cheaper one with less damage does so;
        else only an equally cheap one with less damage.
    """
    rows = self.sorted(self.cost, self.damage)
    new = np.ones(len(rows.cost), bool)
    if best_only:
      least = np.minimum.accumulate(rows.damage)
      new[1:] = rows.damage[1:] < least[:-1]
    else:
      new[1:] = rows.cost[1:] != rows.cost[:-1]
    return Choices(*(array[new] for array in rows))


class Chain:
  """The candidates of all blocks; `BlockCosts` and damages as in `budget`."""

  def __init__(
    self,
    costs: Sequence[BlockCosts],
    damages: Sequence[Sequence[float]],
    fixed: float,
    any_order: bool,
  ) -> None:
    self.damages = [np.asarray(d, float) for d in damages]
    self.fixed = fixed
    keep = [np.asarray(block.keep) for block in costs]
    self.own = [np.asarray(block.own, float) for block in costs]
    # Per block [candidate before, own candidate]: cost, and which may follow.
    self.steps, self.allowed = [], []
    for i, (before, block) in enumerate(itertools.pairwise(costs), start=1):
      read = np.outer(before.channels, block.per_channel)
      self.steps.append(self.own[i] + read)
      follows = keep[i - 1][:, None] >= keep[i]
      self.allowed.append(np.ones_like(follows) if any_order else follows)
    self.least = self._rest(np.inf, np.min)
    self.most = self._rest(-np.inf, np.max)

  def _rest(
    self, never: float, extreme: Callable[..., np.ndarray]
  ) -> list[np.ndarray]:
    """Per block and candidate the extreme cost of all deeper blocks."""
    rest = [np.zeros(len(self.own[-1]))]
    for step, allowed in zip(self.steps[::-1], self.allowed[::-1]):
      rest.insert(0, extreme(np.where(allowed, step + rest[0], never), axis=1))
    return rest

  def extremes(self) -> tuple[float, float]:
    """The least and the largest cost."""
    first = self.own[0] + self.fixed
    return (
      float((first + self.least[0]).min()),
      float((first + self.most[0]).max()),
    )

  def nearest(self, target: float) -> tuple[float | None, float | None]:
    """The costs next to the target, below (or the same) and above."""
    least, most = self.extremes()
    if least > most:  # no order of keep ratios is allowed
      return None, None
    if least > target or most <= target:
      return (None, least) if least > target else (most, None)
    # In windows that grow: there may be very many choices in all.
    below, above, window = np.zeros(0), np.zeros(0), 0.02
    while not (len(below) and len(above)):
      if not len(below):
        below = self.choices(target * (1 - window), target).cost
      if not len(above):
        above = self.choices(target, target * (1 + window)).cost
        above = above[above > target]
      window *= 2
    return float(below.max()), float(above.min())

  def choices(
    self, lower: float, upper: float, best_only: bool = False
  ) -> Choices:
    """Choices that cost from `lower` to `upper`, none better left out."""
    groups = []  # by candidate of the last block so far
    for j in range(len(self.own[0])):
      row = Choices(
        self.own[0][j : j + 1] + self.fixed,
        self.damages[0][j : j + 1],
        np.array([[j]]),
      )
      groups.append(self._within(row, 0, j, lower, upper))
    for i, (step, allowed) in enumerate(zip(self.steps, self.allowed), start=1):
      shallower, groups = groups, []
      for j in range(len(self.own[i])):
        rows = [
          Choices(
            before.cost + step[k, j],
            before.damage + self.damages[i][j],
            np.pad(before.choice, ((0, 0), (0, 1)), constant_values=j),
          )
          for k, before in enumerate(shallower)
          if allowed[k, j] and len(before.cost)
        ]
        rows = _joined(rows, i + 1)
        rows = self._within(rows, i, j, lower, upper)
        groups.append(rows.pruned(best_only))
    return _joined(groups, len(self.own))

  def _within(
    self, rows: Choices, block: int, index: int, lower: float, upper: float
  ) -> Choices:
    """Those that deeper blocks can still bring between the bounds."""
    fits = rows.cost + self.least[block][index] <= upper
    fits &= rows.cost + self.most[block][index] >= lower
    return Choices(*(array[fits] for array in rows))


def _joined(rows: Sequence[Choices], blocks: int) -> Choices:
  if not rows:
    return Choices(np.zeros(0), np.zeros(0), np.zeros((0, blocks), int))
  return Choices(*(np.concatenate(arrays) for arrays in zip(*rows)))
