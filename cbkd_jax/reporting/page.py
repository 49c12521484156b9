"""report.html: one file that loads nothing, for a phone and a desk."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from cbkd_jax.reporting import groups as groups_
from cbkd_jax.reporting import picture, provenance, state, style, tables
from cbkd_jax.reporting.drawn import Rendered
from cbkd_jax.reporting.groups import Group
from cbkd_jax.reporting.section import Section
from cbkd_jax.reporting.tables import Table
from cbkd_jax.reporting.wording import percent, points
from cbkd_jax.summary import short

FOLDER = 'report'  # where the figures' files are, beside the page
# Where a figure is shown; the others are of classes.
_TRAINING = ('network', 'accuracy', 'losses')
_COSTS = ('blocks', 'cka')


def render(
  sections: Sequence[tuple[Section, Sequence[Rendered]]],
  groups: Sequence[Group] = (),
  across: Sequence[Rendered] = (),
  table: Table | None = None,
) -> str:
  """The page.

  Args:
    sections: the runs that are shown in full, at least one, each with its
      figures.
    groups: all runs, where there are several.
    across: the figures that several runs have in common.
    table: the runs side by side.

  Returns:
    HTML. Figures' files are linked to, in the folder beside it.
  """
  several = table is not None
  starts = prefixes([section for section, _ in sections], several)
  runs = [
    _run(section, start, figures)
    for start, (section, figures) in zip(starts, sections)
  ]
  page = {
    'title': _title(groups) if several else runs[0]['title'],
    'lead': _lead_of_several(groups) if several else runs[0]['lead'],
    'css': _css(),
    'across': [_figure(rendered) for rendered in across],
    'table': table,
    'runs': runs,
    'footer': (
      'Counterclockwise block-wise knowledge distillation: Lan et al., '
      'Scientific Reports 15:11369 (2025), doi 10.1038/s41598-025-91152-3.'
    ),
  }
  return environment().get_template('page.html').render(page=page)


@functools.cache
def environment() -> jinja2.Environment:
  """Templates; HTML escapes all that it is given."""
  return jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / 'templates'),
    autoescape=jinja2.select_autoescape(['html']),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )


def prefixes(sections: Sequence[Section], several: bool) -> list[str]:
  """What the runs' files and ids begin with; of several no two are alike."""
  if not several:
    return [''] * len(sections)
  keys = []
  for section in sections:
    key = first = section.key or 'run'
    number = 1
    while key in keys:
      number += 1
      key = f'{first}_{number}'
    keys.append(key)
  return [f'{key}-' for key in keys]


def _css() -> markupsafe.Markup:
  text = (Path(__file__).parent / 'templates' / 'page.css').read_text()
  for name, palette in (('LIGHT', style.LIGHT), ('DARK', style.DARK)):
    text = text.replace(f'@{name}@', style.css(palette))
  return markupsafe.Markup(text)


def _figure(rendered: Rendered) -> dict[str, Any]:
  drawn, key = rendered.drawn, rendered.key
  return {
    'id': key,
    'title': drawn.title,
    'says': drawn.says,
    'notes': drawn.notes,
    'csv': f'{FOLDER}/{key}.csv',
    'png': f'{FOLDER}/{key}.png',
    'narrow': markupsafe.Markup(rendered.narrow),
    'wide': markupsafe.Markup(rendered.wide),
  }


def _run(
  section: Section, start: str, rendered: Sequence[Rendered]
) -> dict[str, Any]:
  """What the template says of a run."""
  record = section.record
  figures = {one.drawn.name: _figure(one) for one in rendered}
  command, given = provenance.command(record)
  fields = provenance.fields(record)
  changed = [field for field in fields if field.default is not None]
  return {
    'id': start,
    'name': record.name,
    'title': _what(record.config),
    'lead': _lead(section),
    'tiles': _tiles(record.summary) if record.summary else [],
    'notices': [
      *state.left(section),
      *section.missing,
      *state.warnings(section),
    ],
    'stages': tables.stages(section),
    'blocks': tables.blocks(section),
    'training': [figures[n] for n in _TRAINING if n in figures],
    'costs': [figures[n] for n in _COSTS if n in figures],
    'classes': [
      f for n, f in figures.items() if n not in (*_TRAINING, *_COSTS)
    ],
    'worst': _worst(section),
    'command': command,
    'command_says': 'The command that was given:'
    if given
    else 'The command was not kept. This one has the same config:',
    'differing': Table(
      'Fields that are not the default',
      ('field', 'value', 'default'),
      [(f.name, f.value or "''", f.default or "''") for f in changed],
      words=3,
    ),
    'defaults': [field for field in fields if field.default is None],
    'facts': provenance.facts(record),
  }


def _what(config: Mapping[str, Any]) -> str:
  student = config['compression']['model'] or 'student'
  return f'{config["teacher"]["model"]} → {student} on {_data(config)}'


def _data(config: Mapping[str, Any]) -> str:
  return config['data']['name']


def _title(groups: Sequence[Group]) -> str:
  count = sum(len(group.records) for group in groups)
  whats = list(dict.fromkeys(_what(g.first.config) for g in groups))
  return f'{count} runs: {whats[0]}' + (' and others' * (len(whats) > 1))


def _lead(section: Section) -> str:
  """The run in a sentence."""
  summary, config = section.record.summary, section.record.config
  if summary is None:
    return f'A run of {config["order"]} distillation that is not finished.'
  teacher, student = summary['teacher'], summary['student']
  return (
    f'A {config["teacher"]["model"]} of {teacher["params"]:,} parameters, '
    f'{percent(teacher["accuracy"])} accurate on the '
    f'{summary["dataset"]["test"]:,} test images of '
    f'{summary["dataset"]["name"]}, became a student of '
    f'{student["params"]:,} parameters with {percent(student["accuracy"])}.'
  )


def _lead_of_several(groups: Sequence[Group]) -> str:
  finished = [group for group in groups if group.finished]
  total = sum(len(group.records) for group in groups)
  done = sum(len(group.finished) for group in groups)
  said = f'{done} of {total} runs are finished.'
  if not groups_.comparable(groups):
    return f'{said} Their teachers or data differ: no figure has them all.'
  if finished:
    best = max(
      finished, key=lambda g: sum(g.of_student('accuracy')) / len(g.finished)
    )
    said += (
      f' The most accurate students are those of {best.label}: '
      f'{tables.mean_deviation(best.of_student("accuracy"))}.'
    )
  return said


def _tiles(summary: Mapping[str, Any]) -> list[dict[str, str]]:
  teacher, student = summary['teacher'], summary['student']
  ratios = summary['compression']

  def tile(name: str, value: str, more: str) -> dict[str, str]:
    return {'name': name, 'value': value, 'more': more}

  found = []
  for key, name in (('accuracy', 'Accuracy'), ('top_5_accuracy', 'Top-5')):
    if key in student and key in teacher:
      before, after = teacher[key], student[key]
      more = f'teacher {percent(before)}, {points(after, before)}'
      found.append(tile(name, percent(after), more))
  if 'quantized_accuracy' in student:
    after = student['quantized_accuracy']
    more = f'in float {percent(student["accuracy"])}'
    found.append(tile('Accuracy in int8', percent(after), more))
  for kind, name in (
    ('params', 'Parameters'),
    ('flops_per_example', 'FLOPs per image'),
  ):
    found.append(
      tile(
        name,
        f'÷{ratios[kind.partition("_")[0] + "_ratio"]:.2f}',
        f'{short(teacher[kind])} → {short(student[kind])}',
      )
    )
  found.append(
    tile('Agreement', percent(student['agreement']), "with teacher's answers")
  )
  return found


def _worst(section: Section) -> list[dict[str, Any]]:
  if section.analysis is None:
    return []
  return [
    {
      'name': found.name,
      'teacher': percent(found.teacher_accuracy),
      'student': percent(found.student_accuracy),
      'examples': f'{found.examples:,}',
      'images': [
        {
          'uri': picture.data_uri(image),
          'predicted': predicted,
          'pixelated': min(image.shape[:2]) < picture.PIXELATED,
        }
        for image, predicted in zip(found.images, found.predicted)
      ],
    }
    for found in section.analysis.worst
  ]
