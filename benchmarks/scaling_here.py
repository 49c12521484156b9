"""The same batch on 1, 2 and 4 virtual devices of this machine, in turns.

  XLA_FLAGS=--xla_force_host_platform_device_count=4 JAX_PLATFORMS=cpu \
    python -m benchmarks.scaling_here

Stage 1 and the thaw of configs/cifar10_small.py. Virtual devices share the
cores: what shows is whether splitting a batch costs anything, and how many
cores one device keeps busy; nothing of links between machines.
"""

import argparse
import importlib

import jax
import numpy as np

from cbkd_jax import config, experiment, measure

NAME = 'cifar10_small'
PHASES = 'stage_1', 'thaw'


def subjects(phase: str, counts: tuple[int, ...]) -> dict[str, measure.Subject]:
  """A phase's step on each number of devices."""
  config.add_configs_to_path()
  values = config.plain(importlib.import_module(f'configs.{NAME}').get_config())
  found = {}
  for count in counts:
    exp = experiment.build(values, tuple(jax.devices()[:count]))
    (stage,) = (s for s in exp.stages if s.name == phase)
    found[str(count)] = measure.prepare(
      exp.spec(stage, experiment.plan_augmentation(values)),
      exp.replicas,
      batch_size=exp.pace.batch_size,
      per_call=exp.pace.per_call,
      examples=2048,
      classes=values['data']['classes'],
    )
  return found


def main() -> None:
  """Prints a row per phase and number of devices."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--rounds', type=int, default=40)
  parser.add_argument('--seconds', type=float, default=60.0)
  arguments = parser.parse_args()
  print('| | devices | images/s | x one device (quartiles) | rounds |')
  print('|---|---|---|---|---|')
  for phase in PHASES:
    found = subjects(phase, (1, 2, 4))
    batch = found['1'].batches[0].rows.size  # one step per call on CPU
    times = measure.take_turns(found, arguments.rounds, arguments.seconds)
    for count, seconds in times.items():
      low, middle, high = np.quantile(times['1'] / seconds, (0.25, 0.5, 0.75))
      print(
        f'| {phase} | {count} | {batch / np.median(seconds):,.0f} '
        f'| {middle:.2f} ({low:.2f} to {high:.2f}) | {len(seconds)} |',
        flush=True,
      )


if __name__ == '__main__':
  main()
