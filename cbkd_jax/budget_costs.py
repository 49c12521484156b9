"""What a folded student costs, block by block, at every candidate width.

Exactly as `counting` counts it, from few counts. The convolutions inside of a
block make its cost a polynomial of second degree in the channels that its
`reduce` leaves and in its width: six counts determine it, a seventh checks it.
Where it is none (a family that rounds channels inside of its blocks), there
are fewer candidates and each is counted.
"""

import bisect
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cbkd_jax import blocks, counting
from cbkd_jax.blocks import Array, BlockOutput, Network
from cbkd_jax.budget import BlockCosts
from cbkd_jax.compression import Student
from cbkd_jax.errors import UserError
from cbkd_jax.models.adapter import Adapted

_CANDIDATES = 64  # per block, about, at most
_COUNTED_CANDIDATES = 16  # where each is counted
_ROUNDING = 1e-5  # relative: XLA adds up FLOPs in float32


@dataclasses.dataclass(frozen=True)
class Choice:
  """What there is to choose from, however a student is made.

  Attributes:
    student: from keep ratios of all blocks, in any order, to the student.
    network: from a student to the network that counts: folded, with the head
      that it predicts with.
    teacher: what the student is compared with.
    widths: of the blocks of a student that keeps all channels.
    image_shape: (height, width, channels).
    inherit: how many of the shallowest blocks are the teacher's own.
    any_order: whether keep ratios may grow with depth.
  """

  student: Callable[[Sequence[float]], Student]
  network: Callable[[Student], Network]
  teacher: Network
  widths: tuple[int, ...]
  image_shape: tuple[int, int, int]
  inherit: int
  any_order: bool = False

  def keep(self, ratios: Sequence[float]) -> tuple[float, ...]:
    """The compressed blocks' ratios behind those of the inherited ones."""
    return (1.0,) * self.inherit + tuple(ratios)

  def cost(self, network: Network, kind: str) -> float:
    """One of `counting.KINDS`, of a whole network."""
    shape, total = (1, *self.image_shape), 0
    for part in network.parts:
      total += counting.part_cost(part, shape, kind)
      shape = blocks.part_shapes(part, shape)[1]
    return total


class Table(NamedTuple):
  """The costs of all choices.

  Attributes:
    fixed: of the inherited blocks.
    blocks: per compressed block.
  """

  fixed: float
  blocks: list[BlockCosts]


def tabulate(choice: Choice, kind: str, counted: bool = False) -> Table:
  """Costs of every compressed block's candidates.

  Args:
    choice: what there is to choose from.
    kind: one of `counting.KINDS`.
    counted: count each candidate, of fewer, as blocks that are no polynomial
      need it; found out here where one more count shows it.

  Raises:
    UserError: a block can't be compressed at all, naming it.
  """
  compressed = range(choice.inherit, len(choice.widths))
  most = _COUNTED_CANDIDATES if counted else _CANDIDATES
  keep = [_candidates(choice, block) for block in compressed]
  widest = choice.student(choice.keep([ratios[0] for ratios in keep]))
  # A narrower student's blocks read the same shapes but for the channels.
  shapes, fixed = [(1, *choice.image_shape)], 0.0
  parts = choice.network(widest).parts
  for part in parts[:-1]:
    shapes.append(blocks.part_shapes(part, shapes[-1])[1])
  for part, shape in zip(parts[: choice.inherit], shapes):
    fixed += counting.part_cost(part, shape, kind)
  tables = []
  for block, ratios in zip(compressed, keep):
    counter = _Counter(choice, kind, block, widest, shapes[block])
    ratios = _thinned(counter.possible(ratios), most)
    table = _block_costs(counter, ratios, counted)
    if table is None:
      return tabulate(choice, kind, counted=True)
    tables.append(table)
  return Table(fixed, tables)


def is_same(cost: float, other: float, kind: str) -> bool:
  """Whether two costs are one, but for the rounding of FLOPs."""
  rounding = _ROUNDING if kind == 'flops_per_example' else 0.0
  return math.isclose(cost, other, rel_tol=rounding)


def _candidates(choice: Choice, block: int) -> tuple[float, ...]:
  """A keep ratio for each width that rounding leaves a block, widest first."""
  whole = choice.widths[block]
  found = []
  for width in range(whole, 0, -1):
    try:
      student = _narrow(choice, {block: width / whole})
    except UserError:  # rounding would make it wider than it is
      continue
    if student.widths[block] == width:
      found.append(width)
  if not found:
    _narrow(choice, {})  # may say why
    raise UserError(
      'compression.width_multiple_of: leaves no width in block '
      f'{block}, of {whole} channels, that a target can choose; must be '
      'smaller'
    )
  return tuple(width / whole for width in found)


def _thinned(keep: Sequence[float], most: int) -> tuple[float, ...]:
  """About `most` of more keep ratios, denser where they are small."""
  if len(keep) <= most:
    return tuple(keep)
  goals = (np.arange(most, 0, -1) / most) ** 2
  nearest = {min(keep, key=lambda k: abs(k - goal)) for goal in goals}
  return tuple(sorted({*nearest, keep[-1]}, reverse=True))


def _narrow(choice: Choice, keep: dict[int, float]) -> Student:
  """The student with these ratios, all else as narrow as can be."""
  least = np.finfo(np.float32).tiny
  ratios = [float(least)] * len(choice.widths)
  ratios[: choice.inherit] = [1.0] * choice.inherit
  for block, ratio in keep.items():
    ratios[block] = ratio
  return choice.student(ratios)


class _Counter(NamedTuple):
  """Counts a block, the deepest with the head."""

  choice: Choice
  kind: str
  block: int
  widest: Student
  shape: tuple[int, ...]

  @property
  def is_first(self) -> bool:
    return self.block == self.choice.inherit

  def sizes(self, keep: float) -> tuple[int, int]:
    """What `reduce` leaves of the channels, and the block's width."""
    student = _narrow(self.choice, {self.block: keep})
    return student.inputs[self.block], student.widths[self.block]

  def possible(self, keep: Sequence[float]) -> Sequence[float]:
    """Those that a block can be built at; some families refuse small ones."""

    def refuses(ratio: float) -> bool:
      try:
        blocks.part_shapes(
          self.parts(*self.sizes(ratio))[self.block], self.shape
        )
      except UserError:
        return True
      return False

    if not refuses(keep[-1]):
      return keep
    # The widest is part of the widest student, which is there.
    return keep[: bisect.bisect_left(keep, True, lo=1, key=refuses)]

  def parts(self, inner: int, width: int) -> Sequence[Any]:
    """Those of the widest student with this block at whatever sizes."""
    block, inputs = self.block, list(self.widest.inputs)
    widths = list(self.widest.widths)
    inputs[block], widths[block] = inner, width
    student = dataclasses.replace(
      self.widest, inputs=tuple(inputs), widths=tuple(widths)
    )
    return self.choice.network(student).parts

  def count(self, inner: int, width: int) -> float:
    """The cost behind the widest block before, at whatever sizes."""
    block, parts = self.block, self.parts(inner, width)
    cost = counting.part_cost(parts[block], self.shape, self.kind)
    if block == len(parts) - 2:
      shape = blocks.part_shapes(parts[block], self.shape)[1]
      cost += counting.part_cost(parts[-1], shape, self.kind)
    return cost

  def per_channel(self) -> Callable[[int], float]:
    """The cost of `reduce` per channel that it reads, by what it leaves."""
    part = self.choice.network(self.widest).parts[self.block]
    if self.is_first or not (isinstance(part, Adapted) and part.reduce):
      return lambda inner: 0.0

    def step(inner: int) -> float:
      alone = part.clone(inner=_passed_on, reduce=inner, expand=None)
      more, less = (
        counting.part_cost(alone, (*self.shape[:-1], channels), self.kind)
        for channels in (3, 2)
      )
      return more - less

    two, three = step(2), step(3)
    return lambda inner: two + (inner - 2) * (three - two)


def _passed_on(x: Array, train: bool) -> BlockOutput:
  """In place of a block, where its `reduce` alone is counted."""
  del train
  return BlockOutput(x, x, x)


def _block_costs(
  counter: _Counter, keep: Sequence[float], counted: bool
) -> BlockCosts | None:
  """The costs of a block's candidates; None: they must be counted."""
  sizes = [counter.sizes(ratio) for ratio in keep]
  if counted or len(keep) < 8:
    costs = [counter.count(*size) for size in sizes]
  else:
    try:
      polynomial = _polynomial(counter, sizes)
    except UserError:  # a family that refuses sizes that do not go together
      return None
    costs = [polynomial(*size) for size in sizes]
    if counter.kind != 'flops_per_example':
      costs = [float(round(cost)) for cost in costs]
    other = len(keep) // 3  # neither size is one that was counted
    count = counter.count(*sizes[other])
    if not is_same(costs[other], count, counter.kind):
      return None
  reads = counter.shape[-1]
  cost_of = counter.per_channel()
  per_channel = [cost_of(inner) for inner, _ in sizes]
  return BlockCosts(
    keep=tuple(keep),
    channels=tuple(width for _, width in sizes),
    own=tuple(cost - reads * each for cost, each in zip(costs, per_channel)),
    per_channel=tuple(per_channel),
  )


def _polynomial(
  counter: _Counter, sizes: Sequence[tuple[int, int]]
) -> Callable[[int, int], float]:
  """The one of second degree through counts at small and middling sizes."""
  inner, width = (
    sorted({values[-1], values[len(values) // 2], values[0]})
    for values in zip(*sizes)
  )
  top = sizes[0]
  # As many powers as there are values; those of both at once up to the second.
  powers = [
    (a, b) for a in range(len(inner)) for b in range(len(width)) if a + b <= 2
  ]

  def terms(r: int, w: int) -> list[float]:
    x, y = r / max(top[0], 1), w / top[1]
    return [x**a * y**b for a, b in powers]

  points = [(inner[a], width[b]) for a, b in powers]
  counts = [counter.count(*point) for point in points]
  factors = np.linalg.solve(np.array([terms(*p) for p in points]), counts)
  return lambda r, w: float(np.dot(terms(r, w), factors))
