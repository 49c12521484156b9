"""The last table and summary.json; the plan's table."""

import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import jax
import rich.box
import rich.console
import rich.table
import rich.text

from cbkd_jax import (
  budget_search,
  cache,
  counting,
  experiment,
  memory_plan,
  wall,
)
from cbkd_jax.data import Dataset, Wanted
from cbkd_jax.experiment import Experiment

_VERSIONS = {
  'jax': 'jax',
  'jaxlib': 'jaxlib',
  'flax': 'flax',
  'optax': 'optax',
  'orbax': 'orbax-checkpoint',
}


def summarize(
  exp: Experiment,
  dataset: Dataset,
  teacher: Mapping[str, Any],
  stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
  """What summary.json holds.

  Args:
    exp: the run.
    dataset: its data.
    teacher: the teacher's figures.
    stages: each stage's figures, the last one's being the student's.

  Returns:
    Nested plain values. Their 'wall' is of the process that finishes the run,
    from its first import on: see `wall`; in a comparison the runs before it
    are part of it.
  """
  device = exp.replicas.devices[0]
  teacher_costs, student_costs = _costs(exp)
  teacher_total = counting.total(teacher_costs)
  student_total = counting.total(student_costs)
  last = stages[-1]
  scores = [k for k in last if k.endswith('accuracy') or k == 'cross_entropy']
  return {
    'config': dict(exp.config),
    'seed': exp.config['seed'],
    'versions': {
      'python': platform.python_version(),
      **{name: metadata.version(dist) for name, dist in _VERSIONS.items()},
    },
    'device': {
      'kind': device.device_kind,
      'count': len(exp.replicas.devices),
      'processes': jax.process_count(),
    },
    'wall': wall.seconds(),
    'dataset': {
      'name': dataset.name,
      'train': len(dataset.train),
      'validation': len(dataset.validation) if dataset.validation else 0,
      'test': len(dataset.test),
    },
    'teacher': {**{k: v for k, v in teacher.items()}, **teacher_total},
    'stages': list(stages),
    'student': {
      **{key: last[key] for key in scores},
      **student_total,
      'agreement': last['agreement'],
      'kl_to_teacher': last['kl_to_teacher'],
    },
    'compression': {
      'keep': exp.config['compression']['keep'],
      'target': exp.found and exp.found.report_of(teacher_total, student_total),
      'params_ratio': teacher_total['params'] / student_total['params'],
      'flops_ratio': (
        teacher_total['flops_per_example'] / student_total['flops_per_example']
      ),
      'bytes_ratio': teacher_total['bytes'] / student_total['bytes'],
      'per_block': [
        {
          'block': i,
          'teacher': t,
          'student': s,
          'params_ratio': t['params'] / s['params'],
          'flops_ratio': t['flops_per_example'] / s['flops_per_example'],
        }
        for i, (t, s) in enumerate(zip(teacher_costs, student_costs))
      ],
    },
  }


def _costs(exp: Experiment) -> tuple[list[dict], list[dict]]:
  last = exp.predicting_network(exp.stages[-1])
  return (
    counting.per_block(exp.local.network(), exp.image_shape),
    counting.per_block(last, exp.image_shape),
  )


def show_results(
  summary: Mapping[str, Any], console: rich.console.Console
) -> None:
  """Prints teacher, stages and student as a table."""
  table = new_table(f'{summary["dataset"]["name"]}, test split')
  table.add_column('', no_wrap=True)
  top_5 = 'top_5_accuracy' in summary['student']
  headers = ['accuracy', *(['top-5'] if top_5 else []), 'agreement', 'KL']
  headers += ['params', 'MFLOPs', 'time', 'img/s']
  for header in headers:
    table.add_column(header, justify='right', no_wrap=True)

  def row(name: str, figures: Mapping[str, Any], cost: Mapping[str, Any]):
    speed = figures.get('examples_per_second')
    cells = [_fixed(figures.get('accuracy'), 4)]
    if top_5:
      cells.append(_fixed(figures.get('top_5_accuracy'), 4))
    cells += [
      _fixed(figures.get('agreement'), 4),
      _fixed(figures.get('kl_to_teacher'), 4),
      _count(cost['params']) if cost else '',
      _mega(cost['flops_per_example']) if cost else '',
      _seconds(figures.get('seconds')),
      f'{speed:,.0f}' if speed else '',
    ]
    table.add_row(name, *cells)

  row('teacher', summary['teacher'], summary['teacher'])
  for stage in summary['stages']:
    row(stage['name'], stage, {})
  table.add_section()
  row('student', summary['student'], summary['student'])
  console.print(table)
  ratios = summary['compression']
  console.print(
    f'{ratios["params_ratio"]:.2f}x fewer parameters, '
    f'{ratios["flops_ratio"]:.2f}x fewer FLOPs than the teacher',
    highlight=False,
  )
  if 'quantized_accuracy' in summary['student']:
    figures = summary['student']
    console.print(
      f'int8 accuracy {figures["quantized_accuracy"]:.4f}, with kernels and '
      "layers' inputs rounded",
      highlight=False,
    )
  # One of an older version has none of these.
  if ratios.get('target'):
    console.print(budget_search.says(ratios['target']), highlight=False)
  if 'wall' in summary:
    wall_ = summary['wall']
    console.print(
      f'imports {wall_["import_seconds"]:,.1f} s, '
      f'compiling {wall_["compile_seconds"]:,.1f} s, '
      f'running {wall_["run_seconds"]:,.1f} s',
      highlight=False,
    )
  for stage in summary['stages']:
    if stage['warning']:
      console.print(rich.text.Text(f'warning: {stage["warning"]}', 'yellow'))


def new_table(title: str) -> rich.table.Table:
  """A table that fits 80 columns."""
  return rich.table.Table(
    title=rich.text.Text(title, 'table.title'),  # a path is no markup
    title_justify='left',
    box=rich.box.SIMPLE_HEAD,
    pad_edge=False,
    collapse_padding=True,
  )


def figure(name: str, value: float | None) -> str:
  """A figure as text; empty for None."""
  if value is None:
    return ''
  if name == 'params':
    return f'{value:,}'
  if name == 'flops_per_example':
    return f'{value / 1e6:,.2f} M'
  return f'{value:.4f}'


def _count(value: float) -> str:
  """Large ones in three digits, for a table that has no room."""
  return f'{value:,}' if value < 1e6 else short(value)


def _mega(value: float) -> str:
  return f'{value / 1e6:,.{2 if value < 1e9 else 0}f}'


def _seconds(value: float | None) -> str:
  return '' if value is None else f'{value:,.0f} s'


def _fixed(value: float | None, digits: int) -> str:
  return '' if value is None else f'{value:.{digits}f}'


def show_plan(exp: Experiment, console: rich.console.Console) -> None:
  """Prints what a run would do, stage by stage; needs no data."""
  config = exp.config
  augmentation = experiment.plan_augmentation(config)
  console.print(
    f'{config["order"]}: {config["teacher"]["model"]} on '
    f'{Wanted.of(config["data"]).title}, '
    f'{config["data"]["train_size"]:,} training '
    f'examples, batch size {config["batch_size"]} on '
    f'{len(exp.replicas.devices)} device(s), seed {config["seed"]}',
    highlight=False,
    markup=False,
  )
  _show_blocks(exp, console)
  if exp.found:
    console.print(
      f'compression.target = {exp.found.target}: '
      f'{budget_search.says(exp.found.report())}; compression.keep of the '
      'config is not looked at',
      highlight=False,
      soft_wrap=True,
    )
  if exp.probes:
    console.print(
      '[yellow]compression.probe = True: what is shown of the student are the '
      'keep ratios without a probe; the run finds its own once it has the '
      'teacher',
      highlight=False,
      soft_wrap=True,
    )
  table = new_table('Stages')
  for header in 'stage', 'network', 'trains':
    table.add_column(header, no_wrap=True)
  for header in 'trained', 'params', 'MFLOPs', 'MiB', 'steps':
    table.add_column(header, justify='right', no_wrap=True)
  local, held = experiment.local_batch(exp), []
  for stage in exp.stages:
    spec = exp.spec(stage, augmentation, local=True)
    costs = counting.per_block(exp.predicting_network(stage), exp.image_shape)
    cost = counting.total(costs)
    trained = sum(costs[i]['params'] for i in stage.trained_blocks)
    needs = memory_plan.estimate(spec, exp.replicas, local)
    held.append(f'{stage.name} {needs.held / 2**20:,.1f}')
    table.add_row(
      stage.name,
      ' '.join('S' if own else 'T' for own in stage.student),
      _trains(stage.trained),
      _count(trained),
      _count(cost['params']),
      _mega(cost['flops_per_example']),
      f'{needs.total / 2**20:,.0f}',
      f'{stage.training.steps:,}',
    )
  console.print(table)
  console.print(
    'network: T = teacher block, S = student block, shallow to deep. MFLOPs: '
    'forward, per example, by XLA. MiB: memory of a step per device, '
    'estimated, without the data set. trained, params: parameters.',
    highlight=False,
    soft_wrap=True,
  )
  over = f' (large arrays divided over {exp.replicas.model})'
  console.print(
    'A device holds, of parameters, optimiser and teacher, in MiB'
    f'{over * (exp.replicas.model > 1)}: {", ".join(held)}',
    highlight=False,
    soft_wrap=True,
  )
  if not config['teacher']['checkpoint']:
    console.print(
      f'teacher: {exp.teacher_training.steps:,} steps, '
      f'{exp.teacher_objective()}',
      highlight=False,
      soft_wrap=True,
    )
  for stage in exp.stages:
    training = stage.training
    rounded = f', rounded to {stage.quantize}' if stage.quantize else ''
    console.print(
      f'{stage.name}: {exp.objective(stage)}; '
      f'{training.optimizer}, learning rate {training.learning_rate:g} '
      f'{training.schedule}, clip {training.clip_norm:g}{rounded}',
      highlight=False,
      soft_wrap=True,
    )
    spec = exp.spec(stage, augmentation)
    if spec.fixed_views:
      examples = config['data']['train_size']
      kept = cache.plan(spec, config['cache']['dtype'], examples)
      console.print(
        f'{stage.name} keeps {spec.fixed_views} view(s) of {examples:,} '
        f'images: {kept.bytes / 2**20:,.1f} MiB',
        highlight=False,
        soft_wrap=True,
      )


def _show_blocks(exp: Experiment, console: rich.console.Console) -> None:
  table = new_table('Blocks, shallow to deep')
  table.add_column('block', no_wrap=True)
  # Where blocks are not adapted, all take and return the teacher's channels.
  width = 'channels' if exp.architecture.adapted else 'inside'
  for header in ('keep', width, 'units', 'params', 'x', 'MFLOPs', 'x'):
    table.add_column(header, justify='right', no_wrap=True)
  teacher, student = _costs(exp)
  for i, (t, s) in enumerate(zip(teacher, student)):
    table.add_row(
      str(i),
      f'{exp.config["compression"]["keep"][i]:.3g}',
      _arrow(exp.architecture.widths[i], exp.student.widths[i]),
      _arrow(exp.architecture.units[i], exp.student.units[i]),
      *_reduction(t, s),
    )
  table.add_section()
  sums = counting.total(teacher), counting.total(student)
  table.add_row('all', '', '', '', *_reduction(*sums))
  console.print(table)


def _arrow(before: Any, after: Any) -> str:
  return f'{before} → {after}'


def short(value: float) -> str:
  """At most three digits and a unit: 9.42M."""
  for unit, size in ('B', 1e9), ('M', 1e6), ('k', 1e3):
    if value >= size:
      return f'{value / size:.3g}{unit}'
  return f'{value:.3g}'


def _reduction(
  teacher: Mapping[str, float], student: Mapping[str, float]
) -> tuple[str, str, str, str]:
  """Parameters and MFLOPs before and after, each with its ratio."""
  params = teacher['params'], student['params']
  flops = teacher['flops_per_example'], student['flops_per_example']
  return (
    _arrow(*(short(value) for value in params)),
    f'{params[0] / params[1]:.2f}',
    _arrow(*(f'{value / 1e6:,.1f}' for value in flops)),
    f'{flops[0] / flops[1]:.2f}',
  )


def _trains(trained: Sequence[bool]) -> str:
  *blocks, head = trained
  if all(trained):
    return 'all'
  if not any(trained):
    return 'the method alone'
  names = [f'block {i}' for i, t in enumerate(blocks) if t]
  return ' + '.join(names + ['head'] * head)
