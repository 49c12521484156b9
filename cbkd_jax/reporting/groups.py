"""Runs that differ in their seed alone, together."""

import dataclasses
import re
import statistics
from collections.abc import Sequence

from cbkd_jax import stages, workdir
from cbkd_jax.reporting.record import Record


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs of one config with different seeds.

  Attributes:
    label: what they have in common of their names.
    records: at least one.
  """

  label: str
  records: tuple[Record, ...]

  @property
  def first(self) -> Record:
    return self.records[0]

  @property
  def finished(self) -> tuple[Record, ...]:
    """Those that are."""
    return tuple(r for r in self.records if r.finished)

  def accuracies(self, phase: str) -> list[float]:
    """After a phase, of the runs in which it is done."""
    return [
      found['accuracy']
      for record in self.records
      for found in record.phases
      if found['name'] == phase
    ]

  def of_student(self, figure: str) -> list[float]:
    """A figure of the finished students."""
    return [r.summary['student'][figure] for r in self.finished]


def group(records: Sequence[Record]) -> list[Group]:
  """The runs by what they differ in besides their seed.

  Args:
    records: the runs.

  Returns:
    The method's groups first, then the controls', else in the runs' order.
  """
  found: dict[tuple[str, int], list[Record]] = {}
  for record in records:
    fields = workdir.compared(record.config)
    seed = fields.pop('seed')
    fields.pop('teacher.checkpoint', None)  # each seed has its own
    key, number = repr(sorted(fields.items())), 0
    # A seed that is there already is the same run done again, not another.
    while seed in {r.config['seed'] for r in found.get((key, number), ())}:
      number += 1
    found.setdefault((key, number), []).append(record)
  groups = []
  for members in found.values():
    labels = {_without_seed(record.name) for record in members}
    label = labels.pop() if len(labels) == 1 else members[0].name
    groups.append(Group(label or members[0].name, tuple(members)))
  return sorted(
    groups, key=lambda g: stages.ORDERS.index(g.first.config['order'])
  )


def comparable(groups: Sequence[Group]) -> bool:
  """Whether one line can stand for all runs' teachers, on one test split."""
  found = set()
  for group in groups:
    config = group.first.config
    data = [config['data'][name] for name in ('name', 'dir', 'test_split')]
    found.add((config['teacher']['model'], *data))
  return len(found) == 1


def _without_seed(name: str) -> str:
  parts = [p for p in name.split('/') if not re.fullmatch(r'seed_\d+', p)]
  return '/'.join(parts)


def teacher_accuracies(records: Sequence[Record]) -> list[float]:
  """Of the teachers, one per seed where runs share it."""
  found = {}
  for record in records:
    for phase in record.phases:
      if phase['name'] == 'teacher':
        found[record.config['seed'], phase['accuracy']] = phase['accuracy']
  return list(found.values())


def mean(values: Sequence[float]) -> float:
  return statistics.mean(values)


def deviation(values: Sequence[float]) -> float:
  """The sample standard deviation, 0 of one value."""
  return statistics.stdev(values) if len(values) > 1 else 0.0
