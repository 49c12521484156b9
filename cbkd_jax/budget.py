"""Keep ratios for a budget: `compression.target='params:0.1'`.

Per compressed block there is a list of candidates, keep ratios that give
different widths. What the folded student costs is a sum over its blocks, in
which a block's `reduce` reads the width of the block before it: a chain, whose
best choice is found exactly, block by block. Numbers alone here, no networks.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cbkd_jax.errors import UserError, nearest

KINDS = ('params', 'flops', 'bytes', 'latency_ms')
TOLERANCE = 0.02  # of the target, in either direction


class Target(NamedTuple):
  """What the folded student may cost.

  Attributes:
    kind: one of `KINDS`.
    value: a fraction of the teacher's cost, in (0, 1]; milliseconds for
      'latency_ms'.
  """

  kind: str
  value: float

  def __str__(self) -> str:
    return f'{self.kind}:{self.value:g}'


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


class OutOfReachError(ValueError):
  """No choice is within the tolerance of the target.

  Attributes:
    below: the largest cost below the target; None: all are above it.
    above: the smallest cost above the target; None: all are below it. Both
      None: there is no choice at all, as keep ratios must not grow.
  """

  def __init__(self, below: float | None, above: float | None) -> None:
    super().__init__(f'between {below} and {above}')
    self.below, self.above = below, above


def parse(text: str) -> Target:
  """Reads `compression.target`.

  Raises:
    UserError: naming what is wrong with it and what is allowed.
  """
  kind, colon, number = text.partition(':')
  field = f'compression.target = {text!r}'
  if kind not in KINDS:
    raise UserError(
      f'{field}: must be KIND:NUMBER with KIND one of {", ".join(KINDS)}'
      f'{nearest(kind, KINDS)}'
    )
  example = f'{kind}:5' if kind == 'latency_ms' else f'{kind}:0.1'
  if not colon:
    raise UserError(f'{field}: must be KIND:NUMBER, e.g. {example}')
  try:
    value = float(number)
  except ValueError:
    value = math.nan
  most, allowed = 1.0, 'above 0 and at most 1, a fraction of the teacher'
  if kind == 'latency_ms':
    most, allowed = math.inf, 'above 0, in milliseconds'
  if not (0 < value <= most and math.isfinite(value)):
    raise UserError(
      f"{field}: the number after ':' must be {allowed}, e.g. {example}"
    )
  return Target(kind, value)


def default_damages(
  candidates: Sequence[Sequence[float]],
) -> list[list[float]]:
  """What each candidate is taken to harm where nothing has been measured.

  -log(keep), times a weight that falls from 1 in the shallowest compressed
  block to 1/2 in the deepest. Halving a width harms as much wherever it starts
  from, so no block ends with a single channel beside another that is whole:
  where a block costs as its squared width, each gets a share of the budget in
  proportion to its weight. Deep blocks, which have most of a teacher's
  parameters, are so compressed most, and by their weights also where all cost
  the same, as in FLOPs: the method wants keep ratios to fall with depth.

  Args:
    candidates: per compressed block, shallow to deep, its keep ratios.

  Returns:
    Per block and candidate a number, 0 for keep = 1.
  """
  weights = np.linspace(1, 0.5, len(candidates))
  return [
    [-weight * math.log(keep) for keep in block]
    for weight, block in zip(weights, candidates)
  ]


def cost(
  costs: Sequence[BlockCosts], choice: Sequence[int], fixed: float = 0.0
) -> float:
  """What a choice of one candidate per block costs."""
  total, before = fixed, 0
  for block, index in zip(costs, choice):
    total += block.own[index] + block.per_channel[index] * before
    before = block.channels[index]
  return total


def solve(
  costs: Sequence[BlockCosts],
  damages: Sequence[Sequence[float]],
  target: float,
  *,
  fixed: float = 0.0,
  tolerance: float = TOLERANCE,
  any_order: bool = False,
) -> tuple[int, ...]:
  """The least harmful choice that meets the target.

  Of all choices that cost from (1 - tolerance) times the target up to the
  target, the one with the smallest sum of damages; of several, the cheapest,
  then the one that keeps most in the shallowest block. If there is none, the
  cheapest one above the target, up to (1 + tolerance) times it. So a larger
  target never gives a cheaper choice.

  Args:
    costs: per compressed block, shallow to deep.
    damages: per block and candidate a number of at least 0, smaller is
      better, 0 is no harm; they are added up. It is quickest where they don't
      fall along a block's candidates.
    target: in the unit of `costs`.
    fixed: the cost of what is not compressed.
    tolerance: as a fraction of the target.
    any_order: permit keep ratios that grow with depth.

  Returns:
    Per block the index of its candidate.

  Raises:
    OutOfReachError: no choice is near enough.
  """
  problem = _Problem(costs, damages, fixed, any_order)
  lower, upper = (1 - tolerance) * target, (1 + tolerance) * target
  found = problem.choices(-math.inf, target, best_only=True)
  # The best of all below the target; nearly always it is close to it.
  best = found.best(found.damage, found.cost)
  if best is None or best.cost < lower:
    found = problem.choices(lower, target)
    best = found.best(found.damage, found.cost)
  if best is None:
    found = problem.choices(target, upper)
    best = found.best(found.cost, found.damage)
  if best is None:
    raise OutOfReachError(*problem.nearest(target))
  return best.choice


def extremes(
  costs: Sequence[BlockCosts], *, fixed: float = 0.0, any_order: bool = False
) -> tuple[float, float]:
  """What the cheapest and the dearest choice cost."""
  harmless = [np.zeros(len(block.keep)) for block in costs]
  return _Problem(costs, harmless, fixed, any_order).extremes()


class _Best(NamedTuple):
  cost: float
  choice: tuple[int, ...]


class _Choices(NamedTuple):
  """Choices for the first so many blocks, one a row."""

  cost: np.ndarray
  damage: np.ndarray
  choice: np.ndarray

  def best(self, *keys: np.ndarray) -> _Best | None:
    """The smallest by `keys`, then by the indices, if there is any."""
    if not len(self.cost):
      return None
    first = self.sorted(*keys)
    return _Best(float(first.cost[0]), tuple(map(int, first.choice[0])))

  def sorted(self, *keys: np.ndarray) -> '_Choices':
    # Of lexsort's keys the last one is the first to be looked at.
    order = np.lexsort((*self.choice.T[::-1], *keys[::-1]))
    return _Choices(*(array[order] for array in self))

  def pruned(self, best_only: bool) -> '_Choices':
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
    return _Choices(*(array[new] for array in rows))


class _Problem:
  """A chain of blocks."""

  def __init__(self, costs, damages, fixed: float, any_order: bool) -> None:
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

  def _rest(self, never: float, extreme) -> list[np.ndarray]:
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
  ) -> _Choices:
    """Choices that cost from `lower` to `upper`, none better left out."""
    groups = []  # by candidate of the last block so far
    for j in range(len(self.own[0])):
      row = _Choices(
        self.own[0][j : j + 1] + self.fixed,
        self.damages[0][j : j + 1],
        np.array([[j]]),
      )
      groups.append(self._within(row, 0, j, lower, upper))
    for i, (step, allowed) in enumerate(zip(self.steps, self.allowed), start=1):
      shallower, groups = groups, []
      for j in range(len(self.own[i])):
        rows = [
          _Choices(
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
    self, rows: _Choices, block: int, index: int, lower: float, upper: float
  ) -> _Choices:
    """Those that deeper blocks can still bring between the bounds."""
    fits = rows.cost + self.least[block][index] <= upper
    fits &= rows.cost + self.most[block][index] >= lower
    return _Choices(*(array[fits] for array in rows))


def _joined(rows: Sequence[_Choices], blocks: int) -> _Choices:
  if not rows:
    return _Choices(np.zeros(0), np.zeros(0), np.zeros((0, blocks), int))
  return _Choices(*(np.concatenate(arrays) for arrays in zip(*rows)))
