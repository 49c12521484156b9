"""Finds the student that `compression.target` asks for, and remembers it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cbkd_jax import budget, budget_costs, config, timing, workdir
from cbkd_jax.budget import Target
from cbkd_jax.budget_costs import Choice, Table
from cbkd_jax.errors import UserError

# From the candidates' keep ratios, per compressed block, to what each harms.
Damages = Callable[[Sequence[Sequence[float]]], Sequence[Sequence[float]]]

_KINDS = {'params': 'params', 'flops': 'flops_per_example', 'bytes': 'bytes'}
_NAMES = {'params': 'parameters', 'flops': 'FLOPs', 'bytes': 'bytes'}
_MEASUREMENTS = 8  # students compiled for 'latency_ms', at most
_PLACES = 20  # looked at, at most: several may have one student
# Fields that a student's widths depend on; it is found anew where they differ.
_DECISIVE = ('compression.', 'inherit', 'teacher.model', 'compute_dtype')
_DECISIVE += ('data.classes', 'data.image_shape')
_INDECISIVE = {'compression.keep', 'compression.init'}


@dataclasses.dataclass(frozen=True)
class Found:
  """A student that meets a target.

  Attributes:
    target: the config's `compression.target`.
    keep: the keep ratio of each block, those of inherited ones too.
    got: the folded student's cost as a fraction of the teacher's; for
      'latency_ms' the median, in milliseconds.
    quartiles: of the latency, in milliseconds; None for other kinds.
    probed: whether a probe of the teacher's blocks said what harms.
  """

  target: str
  keep: tuple[float, ...]
  got: float
  quartiles: tuple[float, float] | None = None
  probed: bool = False

  def report(self) -> dict[str, Any]:
    """What summary.json says of it."""
    kind, wanted = budget.parse(self.target)
    report = {'kind': kind, 'wanted': wanted, 'got': self.got}
    return report | ({'quartiles': self.quartiles} if self.quartiles else {})

  def report_of(
    self, teacher: Mapping[str, float], student: Mapping[str, float]
  ) -> dict[str, Any]:
    """`report` of a run's own networks, from their counted costs.

    Runs of several objectives may share this student, and some give it
    another head than it was chosen with.
    """
    report = self.report()
    if kind := _KINDS.get(report['kind']):
      report['got'] = student[kind] / teacher[kind]
    return report


def says(report: Mapping[str, Any]) -> str:
  """`Found.report` in words."""
  kind, wanted, got = (report[key] for key in ('kind', 'wanted', 'got'))
  if kind == 'latency_ms':
    low, high = report['quartiles']
    return (
      f'{got:.3g} ms for one image when it was chosen (quartiles {low:.3g} '
      f'to {high:.3g}), target {wanted:g}'
    )
  return f"{got:.4f} of the teacher's {_NAMES[kind]}, target {wanted:g}"


def find(
  choice: Choice,
  target: Target,
  device: Any,
  damages: Damages = budget.default_damages,
) -> Found:
  """The least harmful student that meets a target.

  Args:
    choice: what there is to choose from.
    target: what it may cost.
    device: where a latency is measured.
    damages: what each candidate harms, see `budget.solve`.

  Raises:
    UserError: no student meets it; says what is possible.
  """
  if target.kind == 'latency_ms':
    return _fast_enough(choice, target, device, damages)
  kind = _KINDS[target.kind]
  whole = choice.cost(choice.teacher, kind)
  for counted in (False, True):
    table = budget_costs.tabulate(choice, kind, counted)
    try:
      keep, cost = _solved(choice, table, damages, target.value * whole)
    except budget.OutOfReachError as error:
      raise _out_of_reach(target, error, whole) from None
    got = choice.cost(choice.network(choice.student(keep)), kind)
    # Else its blocks are no polynomials.
    if budget_costs.is_same(got, cost, kind):
      return Found(str(target), keep, got / whole)
  raise UserError(
    f"compression.target = '{target}': what this student costs does not follow "
    "from its blocks' widths one by one; give compression.keep"
  )


def _solved(
  choice: Choice,
  table: Table,
  damages: Damages,
  target: float,
  tolerance: float = budget.TOLERANCE,
) -> tuple[tuple[float, ...], float]:
  """Keep ratios of all blocks, and what they cost."""
  candidates = [block.keep for block in table.blocks]
  chosen = budget.solve(
    table.blocks,
    damages(candidates),
    target,
    fixed=table.fixed,
    tolerance=tolerance,
    any_order=choice.any_order,
  )
  keep = choice.keep([c[i] for c, i in zip(candidates, chosen)])
  return keep, budget.cost(table.blocks, chosen, table.fixed)


def _out_of_reach(
  target: Target, error: budget.OutOfReachError, whole: float
) -> UserError:
  field, name = f"compression.target = '{target}'", _NAMES[target.kind]
  of = f"of the teacher's {name}"
  if error.below is None and error.above is None:
    return _growing(target)
  if error.below is None:
    return UserError(
      f'{field}: the smallest possible student has {error.above / whole:.4f} '
      f'{of}'
    )
  if error.above is None:
    return UserError(
      f'{field}: the largest possible student has {error.below / whole:.4f} '
      f'{of}'
    )
  return UserError(
    f'{field}: no widths come within {budget.TOLERANCE:.0%} of it; nearest '
    f'are {error.below / whole:.4f} and {error.above / whole:.4f} {of}'
  )


def _growing(target: Target) -> UserError:
  return UserError(
    f"compression.target = '{target}': with the widths that "
    'compression.width_multiple_of leaves, keep ratios have to grow with '
    'depth; compression.allow_any_order=True permits it'
  )


def _fast_enough(
  choice: Choice, target: Target, device: Any, damages: Damages
) -> Found:
  """The slowest student that is not slower than the target.

  Of the best students of all sizes, in parameters; few are compiled and
  measured.
  """
  table = budget_costs.tabulate(choice, 'params')
  least, most = budget.extremes(
    table.blocks, fixed=table.fixed, any_order=choice.any_order
  )
  if least > most:  # there is no choice at all
    raise _growing(target)
  measured: dict[tuple[float, ...], timing.Latency] = {}

  def at(place: float) -> float:
    """Milliseconds of the student at a place from 0 to 1, by size."""
    size = least * (most / least) ** place
    # With a tolerance of 1 it is bounded from above alone.
    keep, _ = _solved(choice, table, damages, size, tolerance=1.0)
    if keep not in measured:
      network = choice.network(choice.student(keep))
      measured[keep] = timing.measure(network, choice.image_shape, device)
    return measured[keep].median

  low, high = (0.0, at(0.0)), (1.0, at(1.0))
  _check_latency(target, low[1], high[1])
  for _ in range(_PLACES):
    if _is_met(target, low[1]) or len(measured) == _MEASUREMENTS:
      break
    # Where a straight line says, but well inside.
    ahead = (target.value - low[1]) / (high[1] - low[1])
    place = low[0] + (high[0] - low[0]) * min(max(ahead, 0.25), 0.75)
    found = place, at(place)
    low, high = (found, high) if found[1] <= target.value else (low, found)
  # A slower one than that at `low` may have been found fast enough before.
  keep, best = max(
    ((k, m) for k, m in measured.items() if m.median <= target.value),
    key=lambda item: item[1].median,
  )
  return Found(str(target), keep, best.median, (best.low, best.high))


def _is_met(target: Target, median: float) -> bool:
  return (1 - budget.TOLERANCE) * target.value <= median <= target.value


def _check_latency(target: Target, least: float, most: float) -> None:
  field = f"compression.target = '{target}'"
  of = 'ms for one image on this device'
  if least > target.value:
    raise UserError(
      f'{field}: the smallest possible student takes {least:.3g} {of}'
    )
  if most <= target.value and not _is_met(target, most):
    raise UserError(
      f'{field}: the largest possible student takes {most:.3g} {of}'
    )


def stored(directory: Path, values: Mapping[str, Any]) -> Found | None:
  """What another start, or another run, has found for the same question.

  Args:
    directory: a workdir; may not exist.
    values: the config, as nested plain values.

  Returns:
    What is there; None where there is nothing, or a field differs that a
    student's widths depend on.
  """
  files = 'config.json', workdir.BUDGET
  if not all((directory / name).exists() for name in files):
    return None
  there = workdir.read_json(directory / 'config.json')
  known = workdir.flat(config.defaults())
  own, other = ({**known, **workdir.flat(v)} for v in (values, there))
  for field in {*own, *other} - _INDECISIVE:
    if field.startswith(_DECISIVE) and own.get(field) != other.get(field):
      return None
  return read(workdir.read_json(directory / workdir.BUDGET))


def read(found: Mapping[str, Any]) -> Found:
  """From what JSON makes of it."""
  quartiles = found['quartiles'] and tuple(found['quartiles'])
  return Found(
    found['target'],
    tuple(found['keep']),
    found['got'],
    quartiles,
    found.get('probed', False),
  )
