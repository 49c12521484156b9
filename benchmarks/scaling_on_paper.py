"""What a step sends, and what that costs on many devices: docs/scaling.md.

  python -m benchmarks.scaling_on_paper

Nothing is measured: shapes, arithmetic and data sheets.
"""

import dataclasses
import functools
import importlib
from collections.abc import Iterator
from typing import NamedTuple

import jax

from cbkd_jax import config, experiment, machines, minimum, traffic
from cbkd_jax.spec import StepSpec

MACHINES = machines.V5E_256, machines.H200_8
# Of the peak that a device reaches alone: an assumption. The convolutions of
# ResNet-56 have 16 to 64 channels, those of ResNet-50 64 to 2048.
FRACTIONS = {'ResNet-56, CIFAR': 0.05, 'ResNet-50, ImageNet': 0.3}
BATCHES = 32, 128  # per device


class Row(NamedTuple):
  """A phase of a run."""

  run: str
  phase: str
  spec: StepSpec


@functools.cache
def rows() -> tuple[Row, ...]:
  """All phases of both runs."""
  return (
    *_phases('ResNet-56, CIFAR', 'cifar10_resnet56'),
    *_phases('ResNet-50, ImageNet', 'imagenet_resnet50'),
  )


def _phases(run: str, name: str) -> Iterator[Row]:
  config.add_configs_to_path()
  values = importlib.import_module(f'configs.{name}').get_config()
  exp = experiment.build(config.plain(values), (jax.devices()[0],))
  augmentation = experiment.plan_augmentation(exp.config)
  for stage in exp.stages:
    yield Row(run, stage.name, exp.spec(stage, augmentation))


def sent() -> list[str]:
  """The table of bytes."""
  lines = [
    '| | phase | gradients, kB | batch statistics, kB | metrics, B | sums '
    '| without sync_batch_norm | MFLOP per image |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for run, phase, spec in rows():
    found = traffic.step_traffic(spec)
    local = traffic.step_traffic(_unsynchronised(spec))
    lines.append(
      f'| {run} | {phase} | {found.gradients / 1e3:,.1f} '
      f'| {found.batch_norm / 1e3:,.1f} | {found.metrics} '
      f'| {found.reductions} | {local.reductions} '
      f'| {minimum.step_flops(spec) / 1e6:,.0f} |'
    )
  return lines


def expected() -> list[str]:
  """The table of efficiencies."""
  heads = [f'{m.name}, batch {n}' for m in MACHINES for n in BATCHES]
  lines = [f'| | phase | {" | ".join(heads)} |', '|---' * 6 + '|']
  for run, phase, spec in rows():
    flops = minimum.step_flops(spec)
    cells = []
    for machine in MACHINES:
      for batch in BATCHES:
        shares = [
          machines.efficiency(
            batch * flops, traffic.step_traffic(s), machine, FRACTIONS[run]
          )
          for s in (spec, _unsynchronised(spec))
        ]
        cells.append(' / '.join(f'{100 * share:.0f} %' for share in shares))
    lines.append(f'| {run} | {phase} | {" | ".join(cells)} |')
  return lines


def _unsynchronised(spec: StepSpec) -> StepSpec:
  return dataclasses.replace(spec, sync_batch_norm=False)


if __name__ == '__main__':
  print('\n'.join([*sent(), '', *expected()]))
