"""`cbkd_jax.report`: its page as Chromium shows it, its files, its errors."""

import csv
import dataclasses
import html
import json
import os
import re
import shutil
import statistics
import sys
import types
import warnings
from pathlib import Path

import chromium
import cli
import pytest
import report_data
import tiny_run
import yaml
from absl import flags
from ml_collections import config_flags

from cbkd_jax import config, workdir
from cbkd_jax.errors import UserError
from cbkd_jax.reporting import (
  accuracy_figure,
  analysis,
  block_costs,
  building,
  drawn,
  groups,
  page,
  planned,
  provenance,
  record,
  section,
  state,
  style,
)

ROOT = Path(__file__).resolve().parent.parent
ALL = {
  *('network', 'accuracy', 'losses', 'blocks', 'cka'),
  *('confusion', 'classes'),
}


def _numbers(path):
  with path.open(newline='') as file:
    return list(csv.DictReader(file))


# ---- a real run ----


@pytest.fixture(scope='module')
def real(tmp_path_factory, quick_compilation):
  """A finished run, and what the command said of it."""
  directory = tmp_path_factory.mktemp('report') / 'run'
  changes = {
    'teacher__model': 'tiny_run:shallow',
    'compression__keep': (1.0, 0.5),
    'teacher__steps': 20,
    'stage__steps': 2,
    'thaw__steps': 2,
    'order': 'joint_inherited',  # one stage to compile instead of three
  }
  summary = tiny_run.run(
    directory, changes, command='python -m cbkd_jax.train --config=a.py'
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(block_costs, '_RUNS', (3, 3))
    ended = cli.call(
      'cbkd_jax.report', f'--workdir={directory}', '--examples=24'
    )
  return directory, summary, ended


def test_the_command_writes_page_card_and_figures(real):
  directory, _, ended = real
  assert ended.code == 0, ended.err
  out = ended.out.splitlines()
  assert out[-2:] == [f'{directory}/report.html', f'{directory}/MODEL_CARD.md']
  for name in ALL:
    image = (directory / 'report' / f'{name}.png').read_bytes()
    assert image.startswith(b'\x89PNG')
    assert _numbers(directory / 'report' / f'{name}.csv')
  assert {p.stem for p in (directory / 'report').iterdir()} == ALL


def test_the_page_says_what_the_summary_says(real):
  directory, summary, _ = real
  page = (directory / 'report.html').read_text()
  for name in ALL:
    assert f'<figure id="{name}">' in page
  for network in 'teacher', 'student':
    assert f'{summary[network]["params"]:,} parameters' in page
    accuracy = f'{100 * summary[network]["accuracy"]:.2f}\N{NO-BREAK SPACE}%'
    assert accuracy in page
  assert 'compared on 24 of 32 test images' in page
  assert 'The command that was given:' in page
  assert 'python -m cbkd_jax.train --config=a.py' in page
  assert 'jax</dt><dd>' in page


def test_the_numbers_are_the_runs(real):
  directory, summary, _ = real
  found = {r['phase']: r for r in _numbers(directory / 'report/accuracy.csv')}
  assert float(found['teacher']['accuracy']) == summary['teacher']['accuracy']
  last = summary['stages'][-1]
  assert float(found['joint_inherited']['accuracy']) == last['accuracy']
  rows = [json.loads(line) for line in (directory / 'metrics.jsonl').open()]
  rows = [row for row in rows if 'loss' in row]
  losses = _numbers(directory / 'report' / 'losses.csv')
  assert len(losses) == len(rows) == 20 + 4
  for ours, theirs in zip(losses, rows):
    assert (ours['phase'], int(ours['step'])) == (
      theirs['stage'],
      theirs['step'],
    )
    assert float(ours['loss']) == theirs['loss']
    assert ours['kd'] == ('' if theirs.get('kd') is None else str(theirs['kd']))
  blocks = _numbers(directory / 'report' / 'blocks.csv')
  for who in 'teacher', 'student':
    total = sum(int(row[f'{who}_params']) for row in blocks)
    assert total == summary[who]['params']
  counted = _numbers(directory / 'report' / 'confusion.csv')
  assert sum(int(row['student']) for row in counted) == 24


def test_an_unfinished_run_shows_what_is_there(real, tmp_path):
  directory = tmp_path / 'run'
  shutil.copytree(real[0], directory)
  for name in 'summary.json', 'MODEL_CARD.md', 'report.html':
    (directory / name).unlink()
  for name in 'student', 'joint_inherited', 'report':
    shutil.rmtree(directory / name)
  ended = cli.call('cbkd_jax.report', f'--workdir={directory}')
  assert ended.code == 0, ended.err
  page = (directory / 'report.html').read_text()
  said = 'Not finished: joint_inherited (1 of 1) not begun. Done: teacher.'
  assert said in page
  assert 'there is no student before the run is finished' in page
  assert not (directory / 'MODEL_CARD.md').exists()
  drawn = {path.stem for path in (directory / 'report').iterdir()}
  assert drawn == {'network', 'losses', 'blocks'}
  params = [r['params'] for r in _numbers(directory / 'report/network.csv')]
  assert sum(map(int, params[:2])) == real[1]['teacher']['params']
  assert sum(map(int, params[2:])) == real[1]['student']['params']


# ---- without a run ----

OF_CLASSES = ('confusion', 'confused', 'classes')


@pytest.fixture
def undrawn(monkeypatch):
  """Where words are looked at, no figure is drawn, which takes long."""

  def render(self, prefix=''):
    return drawn.Rendered(f'{prefix}{self.name}', self, '', '', b'')

  monkeypatch.setattr(drawn.Drawn, 'render', render)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Pages of made-up runs: one, one of many classes, several."""
  home = tmp_path_factory.mktemp('made')
  one = report_data.write_run(home / 'one', report_data.summary())
  found = report_data.analysed()
  shown = section.assemble(one, planned.plan(one), found)
  building.write([shown], [], one.directory)
  many = report_data.write_run(home / 'many', report_data.summary())
  names = [f'{i} {report_data.NASTY[i % 6]}' for i in range(30)]
  shown = section.assemble(
    many, planned.plan(many), report_data.analysed(names)
  )
  figures = tuple(f for f in shown.figures if f.name in OF_CLASSES)
  building.write(
    [dataclasses.replace(shown, figures=figures)], [], many.directory
  )
  _write_compared(home / 'several')
  return home


SEEDS = {
  'counterclockwise': [(0.95, 0.75, 0.5, 0.875), (0.925, 0.7, 0.6, 0.85)],
  'scratch': [(0.95, 0.8), (0.925, 0.76)],
}


def _write_compared(home):
  for order, runs in SEEDS.items():
    for seed, accuracies in enumerate(runs):
      report_data.write_run(
        home / f'seed_{seed}' / order,
        report_data.summary(accuracies, order, seed),
        order=order,
      )
  (home / 'seed_1/scratch/summary.json').unlink()
  building.build([home], analysed=False, console=tiny_run.console())


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
  if chromium.path() is None:
    pytest.skip('there is no chromium here to look at the page with')
  with chromium.browser(
    tmp_path_factory.mktemp('browser') / 'profile'
  ) as found:
    yield found


# Of each figure: which of its drawings are shown, and whether all their text
# is inside.
_FIGURES = """
[...document.querySelectorAll('.plot')].map(plot => ({
  id: plot.closest('figure').id,
  shown: [...plot.querySelectorAll('svg')].map(svg => {
    const box = svg.getBoundingClientRect();
    if (!box.width) return null;
    const outside = [...svg.querySelectorAll('text')].filter(text => {
      const t = text.getBoundingClientRect();
      return t.width && (t.left < box.left - 1 || t.right > box.right + 1
        || t.top < box.top - 1 || t.bottom > box.bottom + 1);
    }).map(text => text.textContent);
    return {width: box.width, height: box.height, right: box.right, outside};
  }).filter(found => found)
}))
"""


@pytest.mark.parametrize('width', [390, 1400])
@pytest.mark.parametrize('name', ['one', 'many', 'several'])
def test_in_chromium(browser, made, name, width):
  page = made / name / 'report.html'
  browser.open(page, width)
  assert browser.complaints == []
  asked = {url for url in browser.requested if not url.startswith('data:')}
  assert asked == {page.as_uri()}
  seen = browser.evaluate('document.documentElement.clientWidth')
  assert seen == width
  assert browser.evaluate('document.documentElement.scrollWidth') <= width
  figures = browser.evaluate(_FIGURES)
  expected = {
    'one': ALL,
    'many': {*OF_CLASSES},
    'several': {'accuracy', 'size'},
  }[name]
  assert expected <= {figure['id'] for figure in figures}
  for figure in figures:
    (shown,) = figure['shown']  # in one of its sizes
    assert shown['width'] > 250
    assert shown['height'] > 60
    assert shown['right'] <= width
    assert shown['outside'] == []
  images = browser.evaluate(
    '[...document.images].map(i => [i.complete, i.naturalWidth, i.alt])'
  )
  assert len(images) == (0 if name == 'several' else 3 * 2)
  assert all(done and size > 0 and alt for done, size, alt in images)
  ids = browser.evaluate(
    '[...document.querySelectorAll("[id]")].map(e => e.id)'
  )
  assert len(set(ids)) == len(ids)
  # What classes are called is text and nothing else.
  assert browser.evaluate('document.scripts.length') == 0
  assert browser.evaluate('typeof window.hacked') == 'undefined'


def test_light_and_dark(browser, made):
  colors = []
  for dark, palette in ((False, style.LIGHT), (True, style.DARK)):
    browser.open(made / 'one' / 'report.html', 390, dark=dark)
    found = browser.evaluate(
      'getComputedStyle(document.querySelector(".tiles > div")).backgroundColor'
    )
    assert found == _rgb(palette.paper)
    found = browser.evaluate(
      '[...document.querySelectorAll("#accuracy .narrow path")]'
      '.map(path => getComputedStyle(path).stroke)'
    )
    assert _rgb(palette.teacher) in found
    assert _rgb(palette.student) in found
    colors.append(set(found))
  assert colors[0] & colors[1] <= {'none'}


def _rgb(color):
  return f'rgb({", ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))})'


def test_names_of_classes_are_escaped(made):
  page = (made / 'one' / 'report.html').read_text()
  assert '<script' not in page
  assert '<img src=x' not in page
  assert html.escape(report_data.NASTY[0]) in page
  assert page.count('</style>') == 1


def test_runs_side_by_side(made):
  rows = _numbers(made / 'several' / 'report' / 'accuracy.csv')
  found = {(row['run'], row['phase']): row for row in rows}
  two = [run[1] for run in SEEDS['counterclockwise']]
  row = found['counterclockwise', 'stage_1']
  assert float(row['accuracy']) == pytest.approx(statistics.mean(two))
  assert float(row['deviation']) == pytest.approx(statistics.stdev(two))
  assert found['scratch', 'scratch']['seeds'] == '1'  # the other isn't finished
  assert float(found['scratch', 'scratch']['accuracy']) == 0.8
  teachers = found['teacher', 'teacher']
  assert float(teachers['accuracy']) == pytest.approx((0.95 + 0.925) / 2)
  assert teachers['seeds'] == '2'
  page = (made / 'several' / 'report.html').read_text()
  assert '3 of 4 runs are finished.' in page
  space = '\N{NO-BREAK SPACE}'
  assert f'<td>86.25{space}±{space}1.77</td>' in page
  assert '<td>1 of 2</td>' in page
  for order in SEEDS:
    name = f'seed_0/{order}'
    assert f'>{name}</h2>' in page
  assert not (made / 'several' / 'MODEL_CARD.md').exists()


def test_a_run_that_has_only_begun(tmp_path, undrawn):
  (tmp_path / 'config.json').write_text(json.dumps(tiny_run.values()))
  building.build([tmp_path], console=tiny_run.console())
  page = (tmp_path / 'report.html').read_text()
  assert 'Not finished: teacher not begun; then stage_1, stage_2, thaw.' in page
  assert 'Done: nothing.' in page
  assert '<figure id="network">' in page


def test_how_far_a_stage_is(tmp_path, undrawn):
  found = report_data.write_run(tmp_path / 'run', report_data.summary())
  rows = [row for row in found.metrics if row['stage'] != 'thaw']
  rows = [r for r in rows if r['stage'] != 'stage_2' or r['step'] <= 4]
  unfinished = record.Record(
    **{
      **found.__dict__,
      'summary': None,
      'finished': False,
      'metrics': rows,
      'phases': found.phases[:2],
    }
  )
  shown = section.assemble(unfinished, planned.plan(found), None)
  building.write([shown], [], tmp_path)
  page = (tmp_path / 'report.html').read_text()
  said = (
    'Not finished: stage_2 (2 of 3) is at 4 of 6 steps; then thaw. '
    'Done: teacher, stage_1.'
  )
  assert said in page
  assert '<td>at 4 of 6</td>' in page


def test_without_its_data_a_page_says_why(tmp_path, monkeypatch, undrawn):
  found = report_data.write_run(tmp_path / 'run', report_data.summary())

  def missing(*_, **__):
    raise UserError("data.dir = '/gone': is no directory")

  monkeypatch.setattr(analysis, 'analyse', missing)
  building.build([found.directory], console=tiny_run.console())
  page = (found.directory / 'report.html').read_text()
  assert (
    'are not compared: data.dir = &#39;/gone&#39;: is no directory.' in page
  )
  assert '<figure id="blocks">' in page
  assert '<figure id="confusion">' not in page
  assert (found.directory / 'MODEL_CARD.md').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir is missing'),
    (['--workdir='], '--workdir: must name at least one'),
    (['--workdir=/nowhere'], '/nowhere: holds no run; must be a workdir'),
    (['--workdir=s3://bucket/run'], 'must be a directory or gs://'),
    (
      ['--workdir=DIR', '--out=DIR/config.json'],
      'config.json: DIR/config.json is a file, not a directory',
    ),
    (
      ['--workdir=DIR', '--out=DIR/config.json/new'],
      'new: DIR/config.json is a file, not a directory',
    ),
    (['--workdir=DIR,DIR/../a run'], 'a run is named twice'),
    (
      ['--workdir=/nowhere', '--examples=0'],
      '--examples=0: must be at least 1',
    ),
  ],
)
def test_wrong_usage_is_one_line(tmp_path, arguments, message):
  directory = str(
    report_data.write_run(tmp_path / 'a run', report_data.summary()).directory
  )
  arguments = [argument.replace('DIR', directory) for argument in arguments]
  message = message.replace('DIR', directory)
  ended = cli.call('cbkd_jax.report', *arguments)
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err


def test_what_is_no_workdir_is_left_alone(tmp_path):
  (tmp_path / 'notes.txt').write_text('mine')
  ended = cli.call('cbkd_jax.report', f'--workdir={tmp_path}')
  assert ended.code == 2
  assert [path.name for path in tmp_path.iterdir()] == ['notes.txt']


def test_a_place_that_takes_nothing_is_told_before_the_work(
  tmp_path, monkeypatch
):
  found = report_data.write_run(tmp_path / 'run', report_data.summary())
  monkeypatch.setattr(os, 'access', lambda *_: False)  # root may write anywhere
  with pytest.raises(UserError, match='run can not be written to; see --out'):
    building.build([found.directory], console=tiny_run.console())


def test_names_that_look_alike_have_files_of_their_own():
  def prefixes(*names):
    shown = [
      section.Section(types.SimpleNamespace(name=name), None, None, (), ())
      for name in names
    ]
    return page.prefixes(shown, several=len(names) > 1)

  assert prefixes('a b') == ['']
  assert prefixes('a b', 'a_b', 'a_b_2') == ['a_b-', 'a_b_2-', 'a_b_2_2-']
  assert prefixes('ä', 'ö', 'kd/joint') == ['run-', 'run_2-', 'kd_joint-']


@pytest.mark.parametrize(
  'changes',
  [
    {'teacher__model': 'tiny_run:shallow', 'compression__keep': (1.0, 0.5)},
    {'data__test_split': 'test'},
  ],
)
def test_runs_of_other_teachers_share_no_figure(tmp_path, undrawn, changes):
  runs = [
    report_data.write_run(tmp_path / name, report_data.summary(), **more)
    for name, more in (('a', {}), ('b', changes))
  ]
  building.build(
    [run.directory for run in runs],
    out=tmp_path,
    analysed=False,
    console=tiny_run.console(),
  )
  text = (tmp_path / 'report.html').read_text()
  assert 'finished. Their teachers or data differ: no figure has them' in text
  assert '<figure id="accuracy">' not in text
  assert '<figure id="size">' not in text
  for name in ('a', 'b'):
    assert f'<figure id="{name}-accuracy">' in text
  assert 'Side by side' in text
  assert '>seeds</th>' in text


def test_a_finished_run_without_its_student_has_no_card(tmp_path, undrawn):
  run = report_data.write_run(tmp_path / 'run', report_data.summary())
  shutil.rmtree(run.directory / 'student')
  written = building.build(
    [run.directory], out=None, analysed=True, console=tiny_run.console()
  )
  assert [path.name for path in written] == ['report.html']
  assert 'holds no finished student' in written[0].read_text()


def test_without_a_teacher_there_is_no_figure_of_accuracy(tmp_path):
  run = report_data.write_run(tmp_path / 'run', report_data.summary())
  phases = [phase for phase in run.phases if phase['name'] != 'teacher']
  alone = dataclasses.replace(run, summary=None, finished=False, phases=phases)
  assert accuracy_figure.accuracy(groups.group([run])) is not None
  assert accuracy_figure.accuracy(groups.group([alone])) is None


def test_a_log_that_is_no_text_is_one_line(tmp_path):
  run = report_data.write_run(tmp_path / 'run', report_data.summary())
  (run.directory / 'metrics.jsonl').write_bytes(b'\xff\xfe\n')
  with pytest.raises(UserError, match=r'metrics\.jsonl: can not be read'):
    record.read(run.directory)


def test_the_tiles_numbers():
  """Parameters and FLOPs shrink by other factors than one another."""
  summary = report_data.summary()
  summary['compression'] |= {'params_ratio': 5.5, 'flops_ratio': 2.25}
  tiles = {tile['name']: tile for tile in page._tiles(summary)}
  shown = {name: tile['value'] for name, tile in tiles.items()}
  accuracy = summary['student']['accuracy']
  assert shown['Accuracy'] == f'{accuracy:.2%}'.replace('%', '\xa0%')
  teacher = f'{summary["teacher"]["accuracy"]:.2%}'.replace('%', '\xa0%')
  assert f'teacher {teacher}' in tiles['Accuracy']['more']
  assert shown['Parameters'] == '÷5.50'
  assert shown['FLOPs per image'] == '÷2.25'


def test_a_phase_is_named_once_in_its_warning(tmp_path):
  summary = report_data.summary()
  summary['stages'][0]['warning'] = 'stage_1: accuracy 0.1 is below'
  found = report_data.write_run(tmp_path / 'run', summary)
  shown = section.assemble(found, None, None)
  assert state.warnings(shown) == ['stage_1: accuracy 0.1 is below']


def test_a_command_that_was_not_kept_has_the_same_config(tmp_path, monkeypatch):
  found = report_data.write_run(
    tmp_path / 'a run',
    report_data.summary(),
    objective='0.1*ce + 0.9*kd(temperature=2)',
    data__mean=(0.25,),
    stage_overrides__stage_1__learning_rate=0.05,
    thaw__objective='ce',
  )
  command, given = provenance.command(found)
  assert not given
  words = provenance.shlex.split(command.replace('\\\n', ' '))
  assert words[:3] == ['python', '-m', 'cbkd_jax.train']
  assert f'--workdir={found.directory}' in words
  own = flags.FlagValues()
  config.add_configs_to_path()
  config_flags.DEFINE_config_file('config', flag_values=own)
  words = [word for word in words[3:] if not word.startswith('--workdir')]
  words[0] = f'--config={ROOT}/configs/default.py'
  monkeypatch.setattr(sys, 'argv', ['train', *words])
  with warnings.catch_warnings():  # how ml_collections imports the file
    warnings.simplefilter('ignore', DeprecationWarning)
    own(sys.argv)
  values = config.plain(own.config)
  assert workdir.flat(values) == workdir.flat(found.config)


def test_a_long_command_that_was_kept(tmp_path):
  found = report_data.write_run(tmp_path / 'run', report_data.summary())
  long = (
    "python -m cbkd_jax.train --config=configs/digits.py --workdir='my run' "
    "--config.objective='ce + kd -- or so'"
  )
  (found.directory / 'command.txt').write_text(f'{long}\nshort --one\n')
  command, given = provenance.command(record.read(found.directory))
  assert given
  assert command.count(' \\\n') == 3
  assert command.endswith('\nshort --one')
  lines = command.replace(' \\\n ', '').splitlines()
  split = provenance.shlex.split
  assert split(lines[0]) == split(long)


def test_runs_of_one_config_are_a_group(made):
  found = groups.group(record.read_all([made / 'several']))
  assert [group.label for group in found] == list(SEEDS)
  assert [len(group.records) for group in found] == [2, 2]
  assert [len(group.finished) for group in found] == [2, 1]


def test_a_run_done_again_is_a_group_of_its_own(tmp_path):
  for name in 'one', 'again':
    report_data.write_run(tmp_path / name, report_data.summary())
  (tmp_path / 'again' / 'summary.json').unlink()
  found = record.read_all([tmp_path / 'one', tmp_path / 'again'])
  assert [g.label for g in groups.group(found)] == ['one', 'again']


# ---- the card ----


def _card(directory):
  text = (directory / 'MODEL_CARD.md').read_text()
  assert text.startswith('---\n')
  _, front, body = text.split('---\n', 2)
  return yaml.safe_load(front), body


def test_the_cards_front_matter(made):
  front, body = _card(made / 'one')
  assert 'license' not in front  # the author's to choose
  assert front['library_name'] == 'cbkd_jax'
  assert front['pipeline_tag'] == 'image-classification'
  assert front['datasets'] == ['digits']
  (model,) = front['model-index']
  (result,) = model['results']
  assert result['dataset'] == {
    'type': 'digits',
    'name': 'digits',
    'split': 'test[:32]',
  }
  assert result['metrics'] == [
    {'type': 'accuracy', 'name': 'Accuracy', 'value': 0.925}
  ]
  assert model['name'] == 'one'
  assert '# one\n' in body


def test_the_cards_numbers(made):
  space = '\N{NO-BREAK SPACE}'
  _, body = _card(made / 'one')
  assert f'| accuracy | 95.00{space}% | 92.50{space}% |' in body
  assert '| parameters | 6,600 | 1,200 |' in body
  assert '5.50 times fewer' in body
  assert 'uint8 [batch, 8, 8, 1]' in body
  assert 'mean 0.2500, standard\n  deviation 0.5000' in body
  assert 'One run, one seed.' in body
  assert '2 x cpu. python 3.11.7, jax 0.10.2.' in body
  name = r'$x^2$ \_under\_ \*star\* \`code\`'
  assert f'| {name} | 20 | 95.00{space}% | 95.00{space}% |' in body
  # Student 5 of 20 wrong in class 4, the teacher 1.
  name = '&lt;/style>&lt;img src=x onerror="window.hacked=1">'
  assert f'{name} (95.00{space}% to 75.00{space}%, 20 images)' in body
  assert f'| {name} | 20 | 95.00{space}% | 75.00{space}% |' in body


def test_the_card_invents_nothing_and_escapes_names(made):
  _, body = _card(made / 'one')
  assert body.count('to be filled in by the author') == 4
  assert '<script' not in body
  assert '<img' not in body
  for name in ('network', 'accuracy', 'losses', 'blocks', 'confusion'):
    assert f'](report/{name}.png)' in body
    assert (made / 'one' / 'report' / f'{name}.png').exists()
  for row in re.findall(r'^\|.*\|$', body, re.MULTILINE):
    assert len(re.split(r'(?<!\\)\|', row)) in (5, 6, 11, 15)


def test_a_card_of_many_classes_names_the_worst(made):
  _, body = _card(made / 'many')
  assert 'The 20 of 30 classes that lose most, on 600 test images:' in body
