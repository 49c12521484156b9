"""Keep ratios for a budget: `compression.target='params:0.1'`.

Per compressed block there is a list of candidates, keep ratios that give
different widths. What the folded student costs is a sum over its blocks, in
which a block's `reduce` reads the width of the block before it: a chain, whose
best choice is found exactly, block by block. Numbers alone here, no networks.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cbkd_jax.chain import BlockCosts, Chain
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
  chain = Chain(costs, damages, fixed, any_order)
  lower, upper = (1 - tolerance) * target, (1 + tolerance) * target
  found = chain.choices(-math.inf, target, best_only=True)
  # The best of all below the target; nearly always it is close to it.
  best = found.best(found.damage, found.cost)
  if best is None or best.cost < lower:
    found = chain.choices(lower, target)
    best = found.best(found.damage, found.cost)
  if best is None:
    found = chain.choices(target, upper)
    best = found.best(found.cost, found.damage)
  if best is None:
    raise OutOfReachError(*chain.nearest(target))
  return best.choice


def extremes(
  costs: Sequence[BlockCosts], *, fixed: float = 0.0, any_order: bool = False
) -> tuple[float, float]:
  """What the cheapest and the dearest choice cost."""
  harmless = [np.zeros(len(block.keep)) for block in costs]
  return Chain(costs, harmless, fixed, any_order).extremes()
