"""The benchmark: rows of speed and work, and the tables that show them."""

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console

from cbkd_jax import experiment, measure, minimum, summary
from cbkd_jax.errors import UserError
from cbkd_jax.peaks import Peak, peak
from cbkd_jax.replicas import Replicas
from cbkd_jax.spec import StepSpec

SPMD = ('pmap', 'shard_map')


@dataclasses.dataclass(frozen=True)
class Effort:
  """How much is measured.

  Attributes:
    rounds: calls of each program, at most.
    seconds: for one row, roughly.
    examples: random images.
  """

  rounds: int = 50
  seconds: float = 20.0
  examples: int = 2048


def phase_specs(exp: experiment.Experiment) -> dict[str, StepSpec]:
  """The step of each row, by its name: the plan's phases, joint, plain."""
  augmentation = experiment.plan_augmentation(exp.config)
  found = {stage.name: exp.spec(stage, augmentation) for stage in exp.stages}
  joint = experiment.build(
    {**exp.config, 'order': 'joint'}, exp.replicas.devices
  )
  found |= {s.name: joint.spec(s, augmentation) for s in joint.stages}
  return {**found, 'plain': exp.teacher_spec(augmentation)}


def measure_row(
  name: str,
  spec: StepSpec,
  exp: experiment.Experiment,
  effort: Effort,
  best: Peak,
) -> tuple[dict[str, Any], measure.Subject]:
  """One row of the result, and the program that it is about.

  Args:
    name: the row's.
    spec: the phase.
    exp: holds devices and batch size.
    effort: how much is measured.
    best: of one device.
  """
  batch, replicas = exp.pace.batch_size, exp.replicas
  count = len(replicas.devices)
  more = {
    'batch_size': batch,
    'per_call': exp.pace.per_call,
    'examples': effort.examples,
    'classes': exp.config['data']['classes'],
  }
  subjects = {
    'ours': measure.prepare(spec, replicas, **more),
    'naive': measure.prepare(measure.naive(spec), replicas, **more),
  }
  if spec.frozen or spec.teacher is not None:
    views = 2 if 'second_view' in spec.objective.needs else 1
    fixed = dataclasses.replace(
      spec,
      fixed_views=views,
      augmentation=spec.augmentation.of_fixed_views(views),
    )
    subjects['cached'] = measure.prepare(
      fixed, replicas, **more, cache_dtype=exp.config['cache']['dtype']
    )
  times = measure.take_turns(subjects, effort.rounds, effort.seconds)
  ours = subjects['ours']
  flops = ours.flops(batch // count)
  step_seconds = times['ours'] / exp.pace.per_call
  speed = batch / float(np.median(step_seconds))
  # Virtual CPU devices share the machine, others have a peak of their own.
  shared = replicas.devices[0].platform == 'cpu'
  peak_flops = best.flops * (1 if shared else count)
  row = {
    'name': name,
    'spmd': replicas.spmd,
    'devices': count,
    'batch_size': batch,
    'steps_per_call': exp.pace.per_call,
    'calls': len(step_seconds),
    'examples_per_second': speed,
    'step_ms': 1e3 * float(np.median(step_seconds)),
    'step_ms_quartiles': [
      1e3 * float(q) for q in np.quantile(step_seconds, (0.25, 0.75))
    ],
    'compile_seconds': ours.compile_seconds,
    'flops_per_example': flops,
    'analytic_flops_per_example': minimum.step_flops(spec),
    'bytes_per_example': ours.bytes_accessed(batch // count),
    'flops_per_second': flops * speed,
    'fraction_of_peak_flops': flops * speed / peak_flops,
    'peak_memory_bytes': ours.peak_memory(),
    'ratio_to_naive': float(np.median(times['naive'] / times['ours'])),
    'cached_ratio_to_naive': None,
    'cached_examples_per_second': None,
    'cached_flops_per_example': None,
  }
  if 'cached' in subjects:
    cached = subjects['cached']
    seconds = float(np.median(times['cached'])) / exp.pace.per_call
    row |= {
      'cached_ratio_to_naive': float(
        np.median(times['naive'] / times['cached'])
      ),
      'cached_examples_per_second': batch / seconds,
      'cached_flops_per_example': cached.flops(batch // count),
    }
  return row, ours


def benchmark(
  values: Mapping[str, Any],
  *,
  devices: Sequence[int],
  spmd: Sequence[str],
  names: Sequence[str] | None,
  effort: Effort,
  profile: Path | None,
  console: rich.console.Console,
) -> dict[str, Any]:
  """Measures a config.

  Args:
    values: the config, as nested plain values.
    devices: numbers of devices.
    spmd: wrappers.
    names: of the rows; None: all.
    effort: how much is measured.
    profile: where a trace of each row's calls goes; None: none is made.
    console: where to show how it goes.

  Returns:
    What the JSON file holds: 'rows' and what they were measured on.

  Raises:
    UserError: a number of devices, wrapper or name that there is not.
  """
  # What the config keeps of a stage is one of the things that are compared.
  values = {
    **values,
    'cache': {**values['cache'], 'prefix': False, 'thaw': False},
  }
  values = experiment.settled(values)
  local = tuple(jax.local_devices())
  for count in devices:
    if not 1 <= count <= len(local):
      raise UserError(
        f'--devices: {count}: this machine has {len(local)} device(s)'
      )
  for wrapper in spmd:
    if wrapper not in SPMD:
      raise UserError(f'--spmd: {wrapper!r}: must be one of {", ".join(SPMD)}')
  made = {
    (wrapper, count): experiment.build(
      {**values, 'spmd': wrapper}, local[:count]
    )
    for wrapper in spmd
    for count in devices
  }
  for name in names or ():
    specs = phase_specs(next(iter(made.values())))
    if name not in specs:
      raise UserError(f'--names: {name!r}: must be one of {", ".join(specs)}')
  best = peak(local[0], values['compute_dtype'])
  rows = []
  for exp in made.values():
    specs = phase_specs(exp)
    for name in names or specs:
      with _says(console, name, exp.replicas):
        row, ours = measure_row(name, specs[name], exp, effort, best)
      rows.append(row)
      if profile is not None:
        with jax.profiler.trace(str(profile)):
          for _ in range(3):
            ours.run()
  return {
    'rows': rows,
    'device': {
      'kind': local[0].device_kind,
      'platform': local[0].platform,
      'count': len(local),
    },
    'peak': best._asdict(),
    'versions': {
      'python': platform.python_version(),
      **{
        name: metadata.version(name)
        for name in ('jax', 'jaxlib', 'flax', 'optax')
      },
    },
    'config': dict(values),
  }


@contextlib.contextmanager
def _says(
  console: rich.console.Console, name: str, replicas: Replicas
) -> Iterator[None]:
  text = f'{name}: {replicas.spmd}, {len(replicas.devices)} device(s)'
  if not console.is_terminal:
    console.print(text, highlight=False)
    yield
    return
  with console.status(text):
    yield


def show(found: Mapping[str, Any], console: rich.console.Console) -> None:
  """Prints the rows: speed, and the work behind it."""
  several = {(r['spmd'], r['devices']) for r in found['rows']}
  speed = summary.new_table('Speed')
  work = summary.new_table('Work per example, and of the device')
  for table, headers in (
    (
      speed,
      ('img/s', 'ms/step', 'quartiles', 'x naive', 'cached x', 'compile'),
    ),
    (work, ('MFLOP', 'least', 'cached', 'MB', 'GFLOP/s', 'of peak', 'MiB')),
  ):
    table.add_column('', no_wrap=True)
    for header in headers:
      table.add_column(header, justify='right', no_wrap=True)
  for row in found['rows']:
    name = row['name']
    if len(several) > 1:
      name = f'{name} {row["spmd"]} {row["devices"]}'
    low, high = row['step_ms_quartiles']
    cached = row['cached_ratio_to_naive']
    speed.add_row(
      name,
      f'{row["examples_per_second"]:,.0f}',
      f'{row["step_ms"]:,.2f}',
      f'{low:,.1f}-{high:,.1f}',
      f'{row["ratio_to_naive"]:.2f}',
      f'{cached:.2f}' if cached else '',
      f'{row["compile_seconds"]:.1f} s',
    )
    cached = row['cached_flops_per_example']
    work.add_row(
      name,
      f'{row["flops_per_example"] / 1e6:,.1f}',
      f'{row["analytic_flops_per_example"] / 1e6:,.1f}',
      f'{cached / 1e6:,.1f}' if cached else '',
      f'{row["bytes_per_example"] / 1e6:,.2f}',
      f'{row["flops_per_second"] / 1e9:,.1f}',
      f'{row["fraction_of_peak_flops"]:.1%}',
      f'{row["peak_memory_bytes"] / 2**20:,.0f}',
    )
  console.print(speed)
  console.print(work)
  best = found['peak']
  console.print(
    f'{found["device"]["kind"]}, peak ({best["source"]}): '
    f'{best["flops"] / 1e9:,.0f} GFLOP/s, {best["bytes"] / 1e9:,.0f} GB/s',
    highlight=False,
  )
