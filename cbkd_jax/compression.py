"""From the teacher's blocks and keep ratios to the student's blocks.

A student block takes and returns the teacher's width: `reduce` 1x1, the same
structure at fewer channels, `expand` 1x1 (not in the deepest block, which
ends in the head). So any subset of blocks can be swapped. Before the thaw
`fold` multiplies each `expand` with the `reduce` that follows it, which
leaves the architecture of the paper's figure 3.

Families whose blocks are narrower inside only (`Architecture.adapted`) need
none of this.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from cbkd_jax.blocks import Architecture, Network, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.models.adapter import Adapted


@dataclasses.dataclass(frozen=True)
class Student:
  """A compressed network, not yet built.

  Attributes:
    teacher: the teacher's architecture.
    family: the one whose narrower blocks the student's are: the teacher's, or
      another that is cut alike.
    inherit: how many of the shallowest blocks are the teacher's own.
    widths: output channels of each block; channels inside where blocks are
      not adapted.
    inputs: per block, the channels its `reduce` leaves (0: no `reduce`).
    units: units of each block.
  """

  teacher: Architecture
  family: Architecture
  inherit: int
  widths: tuple[int, ...]
  inputs: tuple[int, ...]
  units: tuple[int, ...]

  @property
  def other(self) -> Architecture | None:
    """Its family where that is not the teacher's."""
    return None if self.family is self.teacher else self.family

  def network(self, dtype, folded: bool) -> Network:
    """The student: with the teacher's interface at every cut, or folded."""
    last = len(self.widths) - 1
    parts = []
    for i, (width, units) in enumerate(zip(self.widths, self.units)):
      if i < self.inherit:
        block = self.teacher.block(i, width, units)
      else:
        block = self.family.block(i, width, units)
      if i >= self.inherit and self.family.adapted:
        expand = None if folded or i == last else self.teacher.widths[i]
        block = Adapted(
          block, reduce=self.inputs[i], expand=expand, dtype=dtype
        )
      parts.append(block)
    return Network(tuple(parts), self.family.head())


def compress(
  teacher: Architecture,
  *,
  keep: Sequence[float],
  depth: Sequence[int],
  inherit: int,
  family: Architecture | None = None,
  width_multiple_of: int = 1,
  allow_any_order: bool = False,
) -> Student:
  """The student that keep ratios and depths describe.

  Args:
    teacher: the teacher's architecture, of B blocks.
    keep: per block, the student's channels as a fraction of the teacher's, or
      of `family`'s, in (0, 1]; 1 for the first `inherit`; not growing with
      depth.
    depth: units kept per block, or empty for all of them.
    inherit: how many of the shallowest blocks are the teacher's own.
    family: of the student's blocks, cut like the teacher's (see `wrapping`);
      None: the teacher's.
    width_multiple_of: channel numbers become the nearest multiple of this, at
      least one multiple.
    allow_any_order: permit keep ratios that grow with depth.

  Returns:
    The student.

  Raises:
    UserError: a ratio or depth that is not possible, naming it.
  """
  blocks = len(teacher.widths)
  if len(keep) != blocks:
    raise UserError(
      f'compression.keep = {tuple(keep)}: must have {blocks} entries, one '
      f'per block of the teacher, but has {len(keep)}'
    )
  if not all(0 < ratio <= 1 for ratio in keep):
    raise UserError(
      f'compression.keep = {tuple(keep)}: every entry must be above 0 and '
      'at most 1'
    )
  if any(ratio != 1 for ratio in keep[:inherit]):
    raise UserError(
      f'compression.keep = {tuple(keep)}: the first {inherit} must be 1, '
      f'these blocks are inherited (inherit = {inherit})'
    )
  if not allow_any_order and any(a < b for a, b in itertools.pairwise(keep)):
    raise UserError(
      f'compression.keep = {tuple(keep)}: must not grow with depth; '
      'compression.allow_any_order=True permits it'
    )
  if family is not None and depth:
    raise UserError(
      f'compression.depth = {tuple(depth)}: must be () with '
      'compression.model, whose blocks keep all their units'
    )
  family = family or teacher
  depth = tuple(depth) or family.units
  if len(depth) != blocks or not all(
    1 <= d <= n for d, n in zip(depth, family.units)
  ):
    raise UserError(
      f'compression.depth = {depth}: must have {blocks} entries, each from '
      f'1 to the units of its block, {teacher.units}'
    )
  if depth[:inherit] != teacher.units[:inherit]:
    raise UserError(
      f'compression.depth = {depth}: must start with '
      f'{teacher.units[:inherit]}, these blocks are inherited '
      f'(inherit = {inherit})'
    )
  step = width_multiple_of * family.width_step
  own = (
    _nearest_multiple(ratio * width, step)
    for ratio, width in zip(keep[inherit:], family.widths[inherit:])
  )
  widths = (*teacher.widths[:inherit], *own)
  # What the block's own family would hand it, narrowed as the block is.
  inputs = tuple(
    _nearest_multiple(keep[i] * family.widths[i - 1], width_multiple_of)
    if family.adapted and i >= inherit
    else 0
    for i in range(blocks)
  )
  for i in range(inherit, blocks):
    for own, at_most in (
      (inputs[i], family.widths[i - 1]),
      (widths[i], family.widths[i]),
    ):
      if own > at_most:
        raise UserError(
          f'compression.width_multiple_of = {width_multiple_of}: block {i} '
          f'would get {own} channels where it has {at_most} uncompressed'
        )
  return Student(teacher, family, inherit, widths, inputs, depth)


def _nearest_multiple(value: float, step: int) -> int:
  return max(1, int(value / step + 0.5)) * step


def fold(variables: Variables, inherit: int) -> Variables:
  """Multiplies each `expand` with the `reduce` of the next student block.

  Two affine 1x1 maps in a row, y = (x A + a) B + b, are one: x (A B) + (a B +
  b). The folded network computes the same function. Products are taken in
  float64. Blocks without adapters stay as they are.

  Args:
    variables: of the student with the teacher's interface at every cut.
    inherit: how many of the shallowest blocks are the teacher's own.

  Returns:
    The folded student's variables; the product belongs to the deeper block.
  """
  params = [dict(tree) for tree in variables.params]
  for shallow, deep in zip(params[inherit:-2], params[inherit + 1 : -1]):
    if 'reduce' not in deep:
      continue
    expand, reduce = shallow.pop('expand'), deep['reduce']
    kernel = np.asarray(reduce['kernel'], np.float64)[0, 0]
    dtype = np.asarray(reduce['kernel']).dtype
    product = np.asarray(expand['kernel'], np.float64) @ kernel
    bias = np.asarray(expand['bias'], np.float64) @ kernel
    deep['reduce'] = {
      'kernel': product.astype(dtype),
      'bias': (bias + np.asarray(reduce['bias'], np.float64)).astype(dtype),
    }
  return Variables(tuple(params), variables.batch_stats)
