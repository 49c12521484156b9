"""MODEL_CARD.md: what model hubs expect to be told of a student."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import yaml

from cbkd_jax import objectives
from cbkd_jax.data.wanted import OWN, Wanted
from cbkd_jax.reporting import page, provenance, tables
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.section import Section
from cbkd_jax.reporting.tables import Table
from cbkd_jax.reporting.wording import percent
from cbkd_jax.stages import Stage
from cbkd_jax.student import read_model
from cbkd_jax.summary import short

_LISTED = 20  # classes up to which each has a row
_NAMED = 5  # classes in a sentence


def render(section: Section) -> str:
  """The card of a finished run.

  Args:
    section: the run's; has a summary.
  """
  record, found = section.record, section.analysis
  summary, config = record.summary, record.config
  model = read_model(record.directory / 'student')
  command, given = provenance.command(record, public=True)
  device, student = summary['device'], summary['student']
  blocks = tables.blocks(section)
  environment = page.environment()
  environment.filters['md'] = markdown
  text = environment.get_template('model_card.txt').render(
    front=front_matter(section),
    name=record.name,
    config=config,
    data={**summary['dataset'], 'name': Wanted.of(config['data']).public_name},
    ratio=f'{summary["compression"]["params_ratio"]:.2f}',
    flops_ratio=f'{summary["compression"]["flops_ratio"]:.2f}',
    headline=_headline(summary),
    figures={figure.name: figure for figure in section.figures},
    shape=' x '.join(map(str, config['data']['image_shape'])),
    student_is=(
      f'blocks of `{config["compression"]["model"]}`'
      if config['compression']['model']
      else 'the same blocks, narrower'
    ),
    trained=_trained(config['order']),
    keep=', '.join(f'{k:.3g}' for k in summary['compression']['keep']),
    inherited=_inherited(config),
    mean=_numbers(model['mean']),
    std=_numbers(model['std']),
    stages=_table(tables.stages(section)),
    objectives=_by_stage(section, _objective),
    optimisers=_by_stage(section, _optimiser),
    command=command,
    command_says='The command:'
    if given
    else 'The command was not kept; this one has the same config:',
    accuracy=percent(student['accuracy']),
    top_5=percent(student.get('top_5_accuracy')),
    in_int8=percent(student.get('quantized_accuracy')),
    agreement=percent(student['agreement']),
    student=student,
    classes=_classes(found) if found else '',
    blocks=_table(blocks) if blocks else '',
    measured=_measured(found),
    worst=_worst(found) if found else '',
    least=_least(found) if found else '',
    device=f'{device["count"]} x {device["kind"]}',
    versions=', '.join(f'{k} {v}' for k, v in summary['versions'].items()),
    written=provenance.written(record),
  )
  return re.sub(r'\n{3,}', '\n\n', text)


def _set_name(name: str) -> str:
  """Of a TFDS set without config and version, NAME/CONFIG:VERSION."""
  return re.split('[/:]', name)[0]


def front_matter(section: Section) -> str:
  """The card's fields for machines, as YAML."""
  record = section.record
  fields, student = record.config['data'], record.summary['student']
  metrics = [
    {'type': kind, 'name': name, 'value': student[key]}
    for kind, name, key in (
      ('accuracy', 'Accuracy', 'accuracy'),
      ('accuracy', 'Top-5 accuracy', 'top_5_accuracy'),
    )
    if key in student
  ]
  fields = {
    'library_name': 'cbkd_jax',
    'pipeline_tag': 'image-classification',
    'tags': [
      'image-classification',
      *(['knowledge-distillation'] * (record.config['order'] != 'scratch')),
      *('model-compression', 'jax', 'flax'),
    ],
    # Hubs look for one of this name, without TFDS's config and version; there
    # is none of one's own images.
    **(
      {} if fields['name'] in OWN else {'datasets': [_set_name(fields['name'])]}
    ),
    'metrics': ['accuracy'],
    'model-index': [
      {
        'name': record.name,
        'results': [
          {
            'task': {
              'type': 'image-classification',
              'name': 'Image classification',
            },
            'dataset': {
              'type': fields['name'],
              'name': Wanted.of(fields).public_name,
              'split': fields['test_split'],
            },
            'metrics': metrics,
          }
        ],
      }
    ],
  }
  return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def markdown(text: Any) -> str:
  """Text that comes from data, on one line and without markup."""
  text = re.sub(r'[ \t\n\r\f\v]+', ' ', str(text)).strip(' ')
  text = text.replace('&', '&amp;').replace('<', '&lt;')
  return re.sub(r'([\\`*_{}\[\]|])', r'\\\1', text)


def _table(table: Table) -> str:
  """With a total's row as the others."""
  headers = list(table.headers)
  if table.spans:
    above = [words for words, columns in table.spans for _ in range(columns)]
    headers = [' '.join(p for p in pair if p) for pair in zip(above, headers)]
  lines = [headers, ['---'] * len(headers), *table.rows]
  return '\n'.join(
    '| ' + ' | '.join(c if c == '---' else markdown(c) for c in line) + ' |'
    for line in lines
  )


def _trained(order: str) -> str:
  """How the student came about, in a few words."""
  method = 'counterclockwise block-wise knowledge distillation (CBKD)'
  if order == 'counterclockwise':
    return f'by {method}'
  how = 'by knowledge distillation' if order != 'scratch' else 'without it'
  return f'trained {how}: `{order}`, a control of {method}'


def _inherited(config: Mapping[str, Any]) -> str:
  """What the student has from the teacher as it is."""
  if config['order'] in ('joint', 'scratch'):
    return ''
  count = config['inherit']
  if count == 1:
    return "The first block is the teacher's, trained on."
  return f"The first {count} blocks are the teacher's, trained on."


def _by_stage(section: Section, text: Callable[[Stage], str]) -> str:
  """What is said of each stage, once where all have it in common."""
  if section.plan is None:
    return 'as the config says'
  said = {stage.name: text(stage) for stage in section.plan.stages}
  if len(set(said.values())) == 1:
    return next(iter(said.values()))
  return '; '.join(f'{name}: {words}' for name, words in said.items())


def _objective(stage: Stage) -> str:
  return f'`{objectives.parse(stage.objective)}`'


def _optimiser(stage: Stage) -> str:
  training = stage.training
  return (
    f'{training.optimizer}, learning rate {training.learning_rate:g}, '
    f'{training.schedule}, weight decay {training.weight_decay:g}'
  )


def _headline(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
  teacher, student = summary['teacher'], summary['student']
  rows = [
    ('accuracy', percent(teacher['accuracy']), percent(student['accuracy'])),
    ('parameters', f'{teacher["params"]:,}', f'{student["params"]:,}'),
    (
      'FLOPs per image',
      short(teacher['flops_per_example']),
      short(student['flops_per_example']),
    ),
  ]
  if 'top_5_accuracy' in student:
    top_5 = (percent(n.get('top_5_accuracy')) for n in (teacher, student))
    rows.insert(1, ('top-5 accuracy', *top_5))
  return rows


def _numbers(values: Sequence[float]) -> str:
  return ', '.join(f'{value:.4f}' for value in values)


def _classes(found: Analysis) -> str:
  """Accuracy by class; of many classes those that lose most."""
  change = found.student_class_accuracy - found.teacher_class_accuracy
  labels = np.argsort(change, kind='stable')[: np.isfinite(change).sum()]
  title = f'Accuracy by class, on {len(found.labels):,} test images:'
  if len(labels) > _LISTED:
    labels = labels[:_LISTED]
    title = (
      f'The {_LISTED} of {len(change):,} classes that lose most, on '
      f'{len(found.labels):,} test images:'
    )
  else:
    labels = np.sort(labels)
  table = Table(
    title,
    ('class', 'test images', 'teacher', 'student'),
    [
      (
        found.class_names[i],
        f'{found.class_examples[i]:,}',
        percent(found.teacher_class_accuracy[i]),
        percent(found.student_class_accuracy[i]),
      )
      for i in labels
    ],
  )
  return f'{title}\n\n{_table(table)}'


def _worst(found: Analysis) -> str:
  return '; '.join(
    f'{markdown(c.name)} ({percent(c.teacher_accuracy)} to '
    f'{percent(c.student_accuracy)}, {c.examples:,} images)'
    for c in found.worst[:_NAMED]
  )


def _least(found: Analysis) -> str:
  accuracy = found.student_class_accuracy
  order = [i for i in np.argsort(accuracy, kind='stable') if accuracy[i] < 1]
  return '; '.join(
    f'{markdown(found.class_names[i])} ({percent(accuracy[i])})'
    for i in order[:_NAMED]
  )


def _measured(found: Analysis | None) -> str:
  if found is None:
    return 'FLOPs: of the forward pass of an image, by XLA.'
  return (
    f'FLOPs: of the forward pass of an image, by XLA. Time (median) and memory '
    f'of a batch of {found.batch_size} on {found.device}, each block alone.'
  )
