"""From a probe's losses to what each candidate keep ratio harms."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rich.console

from cbkd_jax import summary, workdir


class Losses(NamedTuple):
  """What a probe has found.

  Attributes:
    keep: the probed keep ratios, falling.
    blocks: the compressed blocks' indices.
    losses: per block and keep ratio the fraction of the variance of the
      teacher's output that the student block leaves unexplained.
    steps: of each trial's training.
    seconds: of the whole probe.
    compile_seconds: of these, compiling.
  """

  keep: tuple[float, ...]
  blocks: tuple[int, ...]
  losses: tuple[tuple[float, ...], ...]
  steps: int
  seconds: float
  compile_seconds: float


def damages(
  found: Losses, candidates: Sequence[Sequence[float]]
) -> list[list[float]]:
  """What each candidate keep ratio harms, for `budget.solve`.

  -log(1 - loss), for the sum of it over blocks is the logarithm of a product:
  of what a block passes on the next one passes on its own share. It is the
  loss where that is small; a block that passes nothing on is no bargain,
  however small it is, which a sum of losses, each at most 1, would make it.

  Between the probed keep ratios the loss is a straight line over log(keep).
  Beyond them over keep, to no loss at 1, where the block may be the teacher's,
  and to a loss of 1 at 0. A loss below that of a wider block is noise: it
  counts as the wider one's.

  Args:
    found: what a probe has measured.
    candidates: per compressed block, its keep ratios.

  Returns:
    Per block and candidate a number of at least 0 that grows as keep falls.
  """
  table = []
  for losses, keep in zip(found.losses, candidates):
    loss = _interpolated(found.keep, losses, np.asarray(keep, float))
    # Of blocks that pass on next to nothing, too, the wider is better.
    passed = np.maximum(1 - loss, _LEAST_PASSED * np.asarray(keep))
    table.append([float(x) for x in np.abs(np.log(passed))])
  return table


_LEAST_PASSED = 0.01  # times keep


def _interpolated(
  probed: Sequence[float], losses: Sequence[float], keep: np.ndarray
) -> np.ndarray:
  """The loss at each of `keep`; `probed` falls."""
  known = np.minimum(np.maximum.accumulate(losses), 1)
  inside = np.interp(np.log(keep), np.log(probed[::-1]), known[::-1])
  above = known[0] * (1 - keep) / (1 - probed[0])
  below = 1 - (1 - known[-1]) * keep / probed[-1]
  found = np.where(keep > probed[0], above, inside)
  return np.where(keep < probed[-1], below, found)


def show(found: Losses, console: rich.console.Console) -> None:
  """Prints the losses as a table."""
  table = summary.new_table(
    "Variance of a block's output that narrower ones leave unexplained"
  )
  table.add_column('keep', no_wrap=True)
  for k in found.keep:
    table.add_column(f'{k:g}', justify='right', no_wrap=True)
  for block, losses in zip(found.blocks, found.losses):
    table.add_row(f'block {block}', *(f'{loss:.3f}' for loss in losses))
  console.print(table)
  console.print(
    f'probe: {found.steps} steps, {found.seconds:.1f} s, of these '
    f'{found.compile_seconds:.1f} s compiling',
    highlight=False,
  )


def read(path: Path) -> Losses:
  """What `Losses._asdict` was written as."""
  found = workdir.read_json(path)
  losses = tuple(tuple(row) for row in found.pop('losses'))
  keep, indices = tuple(found.pop('keep')), tuple(found.pop('blocks'))
  return Losses(keep=keep, blocks=indices, losses=losses, **found)
