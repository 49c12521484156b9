"""What reports are made of, without a run: a workdir's files, an analysis."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiny_run

from cbkd_jax.reporting import analysis, record
from cbkd_jax.reporting.analysis import Analysis, WorstClass
from cbkd_jax.reporting.block_costs import BlockFigures, Costs
from cbkd_jax.reporting.record import Record

# What a page, a figure or Markdown might take for its own.
NASTY = (
  '$x^2$ _under_ *star* `code`',
  'a & "b" | \'c\'',
  'Donaudampfschifffahrtsgesellschaftskapitänsmützenabzeichen' * 2,
  '<script>window.hacked = 1</script>',
  '</style><img src=x onerror="window.hacked=1">',
  'two\nlines',
)

TEACHER, STUDENT = (400, 1200, 5000), (400, 300, 500)  # parameters per block
VERSIONS = {'python': '3.11.7', 'jax': '0.10.2'}


def _costs(params: int) -> dict[str, float]:
  return {
    'params': params,
    'flops_per_example': 9.0 * params,
    'bytes': 4 * params,
  }


def _total(params: Sequence[int]) -> dict[str, float]:
  return _costs(sum(params))


def summary(
  accuracies: Sequence[float] = (0.95, 0.9, 0.8125, 0.925),
  order: str = 'counterclockwise',
  seed: int = 0,
) -> dict[str, Any]:
  """What summary.json holds.

  Args:
    accuracies: of the teacher, then of each stage.
    order: one with as many stages.
    seed: the run's.
  """
  names = ['stage_1', 'stage_2', 'thaw'] if len(accuracies) == 4 else [order]
  stages = [
    {
      'name': name,
      'trained_blocks': [2],
      'steps': 6,
      'accuracy': accuracy,
      'cross_entropy': 0.25,
      'agreement': 0.96875,
      'kl_to_teacher': 0.0625,
      'warning': None,
      'loss': 0.5,
      'seconds': 2.0,
      'compile_seconds': 1.0,
      'examples_per_second': 1234.0,
    }
    for name, accuracy in zip(names, accuracies[1:])
  ]
  teacher, student = _total(TEACHER), _total(STUDENT)
  last = stages[-1]
  scores = ('accuracy', 'cross_entropy', 'agreement', 'kl_to_teacher')
  return {
    'config': {},
    'seed': seed,
    'versions': VERSIONS,
    'device': {'kind': 'cpu', 'count': 2, 'processes': 1},
    'wall': {'import_seconds': 1.0, 'compile_seconds': 2.0, 'run_seconds': 3.0},
    'dataset': {'name': 'digits', 'train': 96, 'validation': 0, 'test': 32},
    'teacher': {
      'steps': 40,
      'accuracy': accuracies[0],
      'cross_entropy': 0.125,
      'warning': None,
      'loss': 0.25,
      'seconds': 3.0,
      'compile_seconds': 1.0,
      'examples_per_second': 4321.0,
      **teacher,
    },
    'stages': stages,
    'student': {**{key: last[key] for key in scores}, **student},
    'compression': {
      'keep': [1.0, 0.5, 0.5],
      'target': None,
      **{
        f'{kind}_ratio': sum(TEACHER) / sum(STUDENT)
        for kind in ('params', 'flops', 'bytes')
      },
      'per_block': [
        {
          'block': i,
          'teacher': _costs(t),
          'student': _costs(s),
          'params_ratio': t / s,
          'flops_ratio': t / s,
        }
        for i, (t, s) in enumerate(zip(TEACHER, STUDENT))
      ],
    },
  }


def write_run(directory: Path, found: dict[str, Any], **changes: Any) -> Record:
  """Writes the files that a report reads; of a finished run.

  Args:
    directory: new.
    found: the summary.
    **changes: of the tiny run's config.
  """
  directory.mkdir(parents=True)
  values = tiny_run.values(seed=found['seed'], **changes)
  (directory / 'config.json').write_text(json.dumps(values))
  (directory / 'summary.json').write_text(json.dumps(found))
  rows = []
  for phase in ({'name': 'teacher', 'steps': 40}, *found['stages']):
    for step in range(2, phase['steps'] + 1, 2):
      ce = 2.0 / step
      row = {'stage': phase['name'], 'step': step, 'examples': 16 * step}
      row |= {'accuracy': 0.5, 'ce': ce, 'grad_norm': 1.0}
      if phase['name'] != 'teacher':
        row |= {'kd': 3 * ce, 'loss': 0.1 * ce + 2.7 * ce}
      else:
        row |= {'loss': ce}
      rows.append({**row, 'learning_rate': 0.1})
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (directory / 'metrics.jsonl').write_text(lines)
  model = {'mean': [0.25], 'std': [0.5], 'input_shape': [8, 8, 1]}
  model |= {'classes': 10}  # as all have it
  (directory / 'student').mkdir()
  (directory / 'student' / 'model.json').write_text(json.dumps(model))
  return record.read(directory)


def analysed(names: Sequence[str] = NASTY, examples: int = 20) -> Analysis:
  """An analysis of so many examples per class; each class loses some.

  The student takes the first `i % 5 + 1` examples of class i for class i + 1,
  of which the teacher does the first.
  """
  classes = len(names)
  labels = np.repeat(np.arange(classes), examples)
  place = np.tile(np.arange(examples), classes)
  after = (labels + 1) % classes
  student = np.where(place <= labels % 5, after, labels)
  teacher = np.where(place < 1, after, labels)
  logits = {
    who: np.eye(classes)[said]
    for who, said in (('teacher', teacher), ('student', student))
  }
  found = analysis.compare(logits, labels, names)
  lost = found['teacher_class_accuracy'] - found['student_class_accuracy']
  images = np.random.default_rng(0).integers(0, 255, (2, 8, 8, 1), np.uint8)
  worst = tuple(
    WorstClass(
      label=int(i),
      name=names[i],
      teacher_accuracy=float(found['teacher_class_accuracy'][i]),
      student_accuracy=float(found['student_class_accuracy'][i]),
      examples=examples,
      images=images[: 2 if n else 0],
      predicted=(names[(i + 1) % classes],) * (2 if n else 0),
    )
    for n, i in enumerate(np.argsort(-lost)[:4])
  )
  blocks = tuple(
    BlockFigures(
      name,
      Costs(t, 9.0 * t, 0.25 * t, 2.0**20),
      Costs(s, 9.0 * s, 0.5 * s, 0.0),
    )
    for name, t, s in zip(
      ('block 0', 'block 1', 'block 2', 'head'),
      (*TEACHER[:2], 4900, 100),
      (*STUDENT[:2], 450, 50),
    )
  )
  return Analysis(
    **found,
    worst=worst,
    cka=(('block 0', 1.0), ('block 1', 0.75), ('pooled', 0.875)),
    cka_examples=100,
    blocks=blocks,
    batch_size=64,
    device='cpu',
  )
