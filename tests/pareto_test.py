"""`cbkd_jax.pareto`: one student per target, and which of them are beaten."""

import itertools
import json
import statistics
from unittest import mock

import cli
import cv2
import matplotlib
import pytest
import tiny_run

from cbkd_jax import damages, experiment, probe, sweep, sweep_plot
from cbkd_jax.errors import Preempted

# Of one phase: fewer programs.
CHANGES = {
  'order': 'joint_inherited',
  'compression__probe': True,
  'compression__probe_steps': 2,
  'compression__probe_keep': (0.5,),
  'teacher__steps': 8,
  'stage__steps': 2,
  'thaw__steps': 3,
}
LOSSES = ((1e-4,), (0.8,))
TARGETS = ('params:0.6', 'params:0.4')


def _sweep(directory, interrupted=lambda: False):
  console = tiny_run.console()
  found = sweep.sweep(
    tiny_run.values(**CHANGES),
    directory,
    targets=TARGETS,
    seeds=1,
    console=console,
    interrupted=interrupted,
  )
  return found, console.file.getvalue()


@pytest.fixture(scope='module')
def swept(tmp_path_factory, quick_compilation):
  """Stopped in each target's run, once it has its student; run to its end."""
  directory = tmp_path_factory.mktemp('pareto') / 'runs'
  runs = [directory / 'seed_0' / target.replace(':', '_') for target in TARGETS]
  real, probes = probe.measure, []

  def counted(*args, **kwargs):
    probes.append(1)
    # As if block 1 bore everything and block 2 nothing.
    return real(*args, **kwargs)._replace(losses=LOSSES)

  with mock.patch.object(probe, 'measure', counted):
    for run in runs:
      with pytest.raises(Preempted):
        _sweep(directory, (run / 'joint_inherited').exists)
    budgets = [json.loads((run / 'budget.json').read_text()) for run in runs]
    before = (runs[0] / 'summary.json').stat().st_mtime_ns
    result = _sweep(directory)
  assert (runs[0] / 'summary.json').stat().st_mtime_ns == before
  return directory, *result, probes, budgets


def test_a_point_for_every_target(swept):
  directory, found, *_ = swept
  assert json.loads((directory / 'pareto.json').read_text()) == found
  assert [point['target'] for point in found['points']] == list(TARGETS)
  for point in found['points']:
    name = point['target'].replace(':', '_')
    run = directory / 'seed_0' / name
    summary = json.loads((run / 'summary.json').read_text())
    for key in 'params', 'flops_per_example', 'accuracy', 'agreement':
      assert point[key] == summary['student'][key]
    share = float(point['target'].split(':')[1])
    teacher = summary['teacher']
    assert point['params'] <= 1.02 * share * teacher['params']
    assert point['keep'] == summary['compression']['keep']
    for key in 'params', 'accuracy':
      assert found['teacher'][key] == teacher[key]
  assert found['points'][1]['pareto_optimal']


def test_one_teacher_and_one_probe_for_all(swept):
  directory, _, _, probes, _ = swept
  summaries = [
    json.loads(path.read_text()) for path in directory.glob('*/*/summary.json')
  ]
  assert len(summaries) == 2
  assert len({summary['teacher']['seconds'] for summary in summaries}) == 1
  assert probes == [1]
  one, other = directory.glob('*/*/probe.json')
  assert one.read_text() == other.read_text()
  there = damages.read(one)
  assert (there.keep, there.losses, there.steps) == ((0.5,), LOSSES, 2)


def test_the_budget_is_spent_where_it_harms_least(swept):
  directory, *_, budgets = swept
  changes = {**CHANGES, 'compression__target': TARGETS[0]}
  without = experiment.build(tiny_run.values(**changes)).found
  chosen = budgets[0]
  assert chosen['probed']
  assert not without.probed
  assert chosen['keep'][1] < without.keep[1]
  assert chosen['keep'][2] > without.keep[2]
  # Nor does a resumed run choose again.
  run = directory / 'seed_0' / 'params_0.6'
  assert json.loads((run / 'budget.json').read_text()) == chosen
  summary = json.loads((run / 'summary.json').read_text())
  assert summary['compression']['keep'] == chosen['keep']
  model = json.loads((run / 'student' / 'model.json').read_text())
  widths = [k * w for k, w in zip(chosen['keep'], tiny_run.WIDTHS)]
  assert model['widths'] == pytest.approx(widths)


def test_finished_runs_are_not_run_again(swept):
  directory, found, text, *_ = swept
  paths = sorted(directory.glob('*/*/summary.json'))
  before = [path.stat().st_mtime_ns for path in paths]
  assert _sweep(directory)[0] == found
  assert [path.stat().st_mtime_ns for path in paths] == before
  assert text.count('already finished') == 1


def test_the_table(swept):
  _, found, text, *_ = swept
  for point in found['points']:
    *_, line = (t for t in text.splitlines() if point['target'] in t)
    *mark, rest = line.split(point['target'])
    cells = rest.split()
    assert ('*' in mark[0]) == point['pareto_optimal']
    assert cells[:3] == [f'{keep:.3g}' for keep in point['keep']]
    gap = 100 * (point['accuracy'] - found['teacher']['accuracy'])
    assert cells[3:] == [
      f'{point["params"]:,}',
      f'{point["flops_per_example"] / 1e6:.2f}',
      f'{point["accuracy"]:.4f}',
      f'{gap:+.2f}',
      f'{point["agreement"]:.4f}',
    ]


def test_the_plot_is_a_picture(swept):
  directory, *_ = swept
  picture = cv2.imread(str(directory / 'pareto.png'))
  assert picture.shape == (1000, 1600, 3)


def _point(params, *accuracies):
  return {
    'target': f'params:{params / 1e6:g}',
    'params': params,
    'accuracy': statistics.mean(accuracies),
    'accuracies': list(accuracies),
  }


def test_optimal():
  points = [
    _point(100, 0.9),
    _point(50, 0.91),  # beats the first
    _point(20, 0.8),
    _point(20, 0.85),  # beats the one before, at the same size
    _point(10, 0.85),  # beats both
    _point(5, 0.5),
    _point(5, 0.5),  # equal: both stay
  ]
  assert sweep.optimal(points) == [False, True, False, False, True, True, True]


@pytest.mark.parametrize('seeds', [1, 3])
def test_labels_cover_neither_each_other_nor_points(seeds):
  spread = (-0.004, 0.001, 0.003)[:seeds] if seeds > 1 else (0,)
  sizes = (427, 171, 128, 90, 85, 43)
  accuracies = (0.931, 0.921, 0.90, 0.906, 0.908, 0.881)
  points = [
    _point(1000 * size, *(accuracy + d for d in spread))
    for size, accuracy in zip(sizes, accuracies)
  ]
  for point, is_optimal in zip(points, sweep.optimal(points)):
    point['pareto_optimal'] = is_optimal
  teacher = _point(855_770, *(0.932 + d for d in spread))
  with matplotlib.rc_context(sweep_plot._STYLE):
    figure = sweep_plot.draw({'teacher': teacher, 'points': points}, 'title')
    (axes,) = figure.axes
    figure.draw_without_rendering()
    said, *labels = axes.texts
    assert ('of 3 seeds' in said.get_text()) == (seeds == 3)
    boxes = [label.get_window_extent() for label in labels]
  assert len(labels) == 7
  for one, other in itertools.combinations(boxes, 2):
    assert not one.overlaps(other)
  for box in boxes:
    assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1
    for point in (*points, teacher):
      at = axes.transData.transform((point['params'], 100 * point['accuracy']))
      assert not box.contains(*at)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--targets is missing'),
    (['--targets='], '--targets: must name at least one'),
    (['--targets=params:2'], "'params:2': the number after ':' must be above"),
    (['--targets=parms:0.5'], 'one of params, flops, bytes, latency_ms; did'),
    (
      ['--targets=params:0.5,params:.5'],
      "--targets: 'params:0.5' and 'params:.5' are the same",
    ),
    (['--targets=params:0.5,params:0.001'], 'the smallest possible student'),
    (['--targets=params:0.5', '--seeds=0'], '--seeds=0: must be at least 1'),
    (['--targets=params:0.5', '--config.inherit=5'], 'inherit = 5: must be'),
  ],
)
def test_wrong_usage_is_one_line(tmp_path, arguments, message):
  directory = tmp_path / 'runs'
  config = f'--config={tiny_run.__file__}'
  ended = cli.call(
    'cbkd_jax.pareto', config, f'--workdir={directory}', *arguments
  )
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err
  assert not directory.exists()
