"""A student of another family: its blocks, cut where the teacher's are cut.

A hybrid is defined wherever two networks have maps of one size; channels are
the adapters' business. So the other family's blocks are grouped such that one
of them ends at each of the teacher's cuts, and what is as shallow as the
inherited blocks is left out: the teacher's own come in its place.
"""

from collections.abc import Sequence

from cbkd_jax import blocks
from cbkd_jax.blocks import Architecture, Network
from cbkd_jax.models.adapter import Chain

Size = tuple[int, int]


class CutError(ValueError):
  """Two networks that can't be cut alike."""


def cut_alike(
  family: Architecture,
  teacher: Architecture,
  inherit: int,
  image_shape: tuple[int, int, int],
  width_multiple_of: int = 1,
) -> Architecture:
  """The other family with as many blocks as the teacher, and its map sizes.

  Args:
    family: the student's own architecture.
    teacher: the teacher's.
    inherit: how many of the shallowest blocks will be the teacher's own.
    image_shape: (height, width, channels).
    width_multiple_of: channel numbers inside of a group, too, become the
      nearest multiple of this.

  Returns:
    An architecture whose block i ends where the teacher's does; its deepest
    block may end at any size, for the head follows. It has no blocks below
    `inherit`; the width that it gives for block `inherit - 1` is that of the
    maps that its own next block is made for.

  Raises:
    CutError: no block ends at one of the teacher's cuts; names the cut.
  """
  theirs = _sizes(teacher.network(), image_shape, 'the teacher')
  ours = _sizes(family.network(), image_shape, 'this model')
  # The last block of each group, from the inherited ones' on.
  ends = [*_ends(ours, theirs[inherit - 1 : -1], inherit), len(ours) - 1]

  def members(index: int) -> range:
    group = index - inherit
    return range(ends[group] + 1, ends[group + 1] + 1)

  def block(index: int, width: int, units: int) -> Chain:
    del units  # All of them: a chain has several blocks' units.
    own = members(index)
    ratio = width / family.widths[own[-1]]
    step = family.width_step * width_multiple_of
    inner = [_narrowed(family.widths[j], ratio, step) for j in own[:-1]]
    found = tuple(
      family.block(j, w, family.units[j]) for j, w in zip(own, [*inner, width])
    )
    return found[0] if len(found) == 1 else Chain(found)

  return Architecture(
    widths=(
      *teacher.widths[: inherit - 1],
      *(family.widths[end] for end in ends),
    ),
    units=(
      *teacher.units[:inherit],
      *(
        sum(family.units[j] for j in members(i))
        for i in range(inherit, len(theirs))
      ),
    ),
    block=block,
    head=family.head,
    width_step=family.width_step,
  )


def end_alike(
  family: Architecture,
  teacher: Architecture,
  image_shape: tuple[int, int, int],
) -> bool:
  """Whether the deepest blocks, too, end with maps of one size."""
  return (
    _sizes(family.network(), image_shape, 'this model')[-1]
    == _sizes(teacher.network(), image_shape, 'the teacher')[-1]
  )


def _sizes(
  network: Network, image_shape: tuple[int, int, int], whose: str
) -> list[Size]:
  """Height and width of what each block hands on."""
  shape, found = (1, *image_shape), []
  for part in network.blocks:
    shape = blocks.part_shapes(part, shape)[1]
    if len(shape) != 4:
      raise CutError(
        f'{whose} hands tokens, not maps, from block to block; there teacher '
        'and student must be of one family'
      )
    found.append(shape[1:3])
  return found


def _narrowed(width: int, ratio: float, step: int) -> int:
  """The nearest multiple of `step`, as wide as the family's own at most."""
  nearest = max(1, int(ratio * width / step + 0.5)) * step
  return width if ratio == 1 else min(nearest, width)


def _ends(
  ours: Sequence[Size], cuts: Sequence[Size], first_cut: int
) -> list[int]:
  """For each cut the block of ours that ends there, the deepest excepted.

  Of several blocks that end at a cut's size, the last one does; where several
  cuts have one size, they share these blocks evenly.
  """
  found = []
  for i, size in enumerate(cuts):
    if i and cuts[i - 1] == size:
      continue  # The first cut of this size has seen to it.
    number = sum(cut == size for cut in cuts)
    candidates = [j for j, own in enumerate(ours[:-1]) if own == size]
    if len(candidates) < number:
      cut = first_cut - 1 + i
      where = f'its cut {cut}, after block {cut}'
      if number > 1:
        where = f'its cuts {cut} to {cut + number - 1}'
      raise CutError(
        f'the teacher hands on maps of {_text(size)} at {where}; there '
        f'{number} block(s) must end, but of its own {len(candidates)} can: '
        f'they end at {", ".join(map(_text, ours))}'
      )
    share = len(candidates) / number
    found += [candidates[round((n + 1) * share) - 1] for n in range(number)]
  return found


def _text(size: Size) -> str:
  return f'{size[0]}x{size[1]}'
