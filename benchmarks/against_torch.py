"""Training speed of our steps and of plain PyTorch's, in turns, on a CPU.

The configuration is configs/cifar10_resnet56.py at keep 1 / 0.5 / 0.5, float32,
batch 128. PyTorch runs in a process of its own (`torch_stage.py`, which says
what its variants do) from the same weights; while one side takes its steps, the
other waits for its input. Sides take turns within a round and change places
from round to round; a ratio is the median of the rounds' own.

OpenMP's threads spin for a moment where they wait: on a machine with anything
else to do set OMP_WAIT_POLICY=PASSIVE, or PyTorch takes several times as long.

  pip install -r benchmarks/requirements.txt
  python -m benchmarks.check_torch     # both compute the same
  python -m benchmarks.against_torch --json=speed.json
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import ours
from cbkd_jax import experiment, step
from cbkd_jax.blocks import Variables
from cbkd_jax.experiment import Experiment

VARIANTS = ('naive', 'shared', 'plain')


class Times(NamedTuple):
  """Of some steps: by the clock, and of all of the process's threads."""

  seconds: float
  cpu_seconds: float


def our_steps(
  exp: Experiment,
  teacher: Variables,
  hybrid: Variables,
  data: step.Resident,
) -> dict[str, Callable[[int], float]]:
  """What is timed on our side: name -> (steps -> seconds).

  A function takes that many further training steps and blocks until they are
  done; its first call may compile. All but 'plain' are ways to do `stage_1`
  and are compared with each of PyTorch's.
  """
  augmentation = experiment.plan_augmentation(exp.config)
  stage = exp.stages[0]
  spec = exp.spec(stage, augmentation)
  return {
    'stage_1': ours.timed(exp, spec, hybrid, teacher, data),
    'stage_1 cached': ours.timed(exp, spec, hybrid, teacher, data, cached=True),
    'plain': ours.timed(
      exp, exp.teacher_spec(augmentation), teacher, None, data
    ),
  }


class Worker:
  """PyTorch's process."""

  def __init__(self, weights: Path, setting: Mapping[str, Any]):
    script = Path(__file__).with_name('torch_stage.py')
    self._setting = setting
    self._process = subprocess.Popen(
      [sys.executable, str(script), '--worker', f'--weights={weights}'],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def __call__(self, variant: str, batch_size: int, steps: int) -> Times:
    request = {'variant': variant, 'batch_size': batch_size, 'steps': steps}
    self._process.stdin.write(json.dumps(request | self._setting) + '\n')
    self._process.stdin.flush()
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(f'the worker has ended, code {self._process.wait()}')
    answer = json.loads(line)
    assert np.isfinite(answer['loss']), answer
    return Times(answer['seconds'], answer['cpu_seconds'])

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def _with_cpu(take: Callable[[int], float]) -> Callable[[int], Times]:
  def run(steps: int) -> Times:
    began = time.process_time()
    seconds = take(steps)
    return Times(seconds, time.process_time() - began)

  return run


def measure(
  sides: Mapping[str, Callable[[int], Times]], rounds: int, steps: int
) -> dict[str, np.ndarray]:
  """name -> `[rounds, 2]`, `Times` per step."""
  names, found = list(sides), {name: [] for name in sides}
  for name in names:  # compiles, warms up
    sides[name](1)
  for n in range(rounds):
    for name in names if n % 2 == 0 else reversed(names):
      found[name].append(sides[name](steps))
    row = (f'{name} {found[name][-1].seconds / steps:.2f}' for name in names)
    print(f'round {n + 1}: s/step', ', '.join(row), file=sys.stderr)
  return {name: np.array(times) / steps for name, times in found.items()}


def compared(names: Sequence[str]) -> list[tuple[str, str]]:
  """Ratios of interest: stages, plain training, and the two within a side."""
  sides = 'cbkd_jax', 'torch'
  stages, plain = [], []
  for side in sides:
    own = [name for name in names if name.startswith(side)]
    plain.append(f'{side} plain')
    stages.append([name for name in own if name != plain[-1]])
  return [
    *((one, other) for one in stages[0] for other in stages[1]),
    (plain[0], plain[1]),
    *((one, base) for own, base in zip(stages, plain) for one in own),
  ]


def _spread(values: np.ndarray) -> dict[str, float]:
  low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
  return {'median': median, 'low': low, 'high': high}


def summary(
  times: Mapping[str, np.ndarray], batch_size: int
) -> dict[str, dict[str, dict[str, float]]]:
  """Medians and quartiles of speeds and of their ratios."""
  return {
    'examples_per_second': {
      name: _spread(batch_size / value[:, 0]) for name, value in times.items()
    },
    'cpu_seconds_per_step': {
      name: _spread(value[:, 1]) for name, value in times.items()
    },
    # Of speeds: above 1, the first is the faster one.
    'speed_ratio': {
      f'{one} / {other}': _spread(times[other][:, 0] / times[one][:, 0])
      for one, other in compared(list(times))
    },
    # Less moved by other programs; a thread that spins counts as working.
    'cpu_ratio': {
      f'{one} / {other}': _spread(times[other][:, 1] / times[one][:, 1])
      for one, other in compared(list(times))
    },
  }


def show(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
  """Prints a table of speeds and one of ratios."""

  def row(name: str, values: Mapping[str, float], digits: int) -> str:
    low, high = values['low'], values['high']
    quartiles = f'{low:.{digits}f} to {high:.{digits}f}'
    return f'{name:<42}{values["median"]:>8.{digits}f}  {quartiles:>16}'

  print(f'{"":<42}{"img/s":>8}  {"quartiles":>16}  CPU s/step')
  for name, values in found['examples_per_second'].items():
    cpu = found['cpu_seconds_per_step'][name]['median']
    print(f'{row(name, values, 1)}  {cpu:>10.2f}')
  print(f'\n{"speed of / speed of":<42}{"ratio":>8}  {"quartiles":>16}  by CPU')
  for name, values in found['speed_ratio'].items():
    cpu = found['cpu_ratio'][name]['median']
    print(f'{row(name, values, 2)}  {cpu:>6.2f}')


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--batch_size', type=int, default=128)
  parser.add_argument('--steps', type=int, default=5, help='per turn')
  parser.add_argument('--rounds', type=int, default=10)
  parser.add_argument('--examples', type=int, default=4096)
  parser.add_argument('--json', help='file for all times and ratios')
  parser.add_argument(
    '--setting',
    type=json.loads,
    default={},
    help='of PyTorch, e.g. {"channels_last": false}; default its fastest',
  )
  args = parser.parse_args()
  load_before = os.getloadavg()
  exp = ours.build(args.batch_size)
  teacher, hybrid = ours.draw(exp)
  split = ours.random_split(exp, args.examples)
  sides = {
    f'cbkd_jax {name}': _with_cpu(take)
    for name, take in our_steps(exp, teacher, hybrid, split).items()
  }
  with tempfile.TemporaryDirectory() as directory:
    weights = Path(directory) / 'weights.npz'
    np.savez(
      weights, **ours.flat('teacher', teacher), **ours.flat('hybrid', hybrid)
    )
    worker = Worker(weights, args.setting)
    for variant in VARIANTS:
      sides[f'torch {variant}'] = lambda steps, variant=variant: worker(
        variant, args.batch_size, steps
      )
    times = measure(sides, args.rounds, args.steps)
    worker.close()
  found = summary(times, args.batch_size)
  show(found)
  print(
    f'\n{args.rounds} rounds of {args.steps} steps of {args.batch_size}; '
    f'{os.cpu_count()} cores, load {load_before[0]:.1f} before'
  )
  if args.json:
    record = {
      'batch_size': args.batch_size,
      'steps': args.steps,
      'setting': args.setting,
      'cores': os.cpu_count(),
      'load_before': load_before,
      'python': platform.python_version(),
      'versions': {name: metadata.version(name) for name in ('jax', 'torch')},
      **found,
      'seconds_per_step': {k: v[:, 0].tolist() for k, v in times.items()},
    }
    Path(args.json).write_text(json.dumps(record, indent=2) + '\n')


if __name__ == '__main__':
  main()
