"""`cbkd_jax.compare`: the method beside its controls."""

import json
import shutil
import statistics

import cli
import pytest
import tiny_run

from cbkd_jax import compare_tables, comparison, training
from cbkd_jax.errors import NonFiniteLossError, Preempted, UserError
from cbkd_jax.reporting import record

CHANGES = {
  'teacher__model': 'tiny_run:shallow',
  'compression__target': 'params:0.43',
  'teacher__steps': 8,
  'stage__steps': 2,
  'thaw__steps': 3,
}
ORDERS = ('counterclockwise', 'scratch')


@pytest.fixture(scope='module')
def compared(tmp_path_factory, quick_compilation):
  directory = tmp_path_factory.mktemp('compare') / 'runs'
  calls = iter(range(10_000))
  with pytest.raises(Preempted):  # in the second run
    _compare(directory, lambda: next(calls) > 40)
  return directory, _compare(directory)


def _compare(directory, interrupted=lambda: False, seeds=2, orders=ORDERS):
  return comparison.compare(
    tiny_run.values(**CHANGES),
    directory,
    seeds=seeds,
    orders=orders,
    console=tiny_run.console(),
    interrupted=interrupted,
    command='python -m cbkd_jax.compare',
  )


def test_a_row_for_every_order_and_seed(compared):
  directory, found = compared
  assert [(row['order'], row['seed']) for row in found['rows']] == [
    ('counterclockwise', 0),
    ('scratch', 0),
    ('counterclockwise', 1),
    ('scratch', 1),
  ]
  for row in found['rows']:
    assert row['steps'] == 2 + 3
    assert row['objective'] == ('ce' if row['order'] == 'scratch' else 'kd')
    path = directory / f'seed_{row["seed"]}' / row['order'] / 'summary.json'
    summary = json.loads(path.read_text())
    assert row['accuracy'] == summary['student']['accuracy']
    assert row['params'] == summary['student']['params']
    assert row['seconds'] == sum(s['seconds'] for s in summary['stages'])
    # The first run's student, whatever the seed.
    assert summary['compression']['keep'] == [1, 0.5]
    assert row['params'] == 192  # of 450
  assert json.loads((directory / 'compare.json').read_text()) == found


def test_the_records_of_its_runs(compared):
  directory, found = compared
  records = record.read_all([directory])
  assert [(r.name, r.done, r.command) for r in records] == [
    (f'seed_{seed}/{order}', done, 'python -m cbkd_jax.compare')
    for seed in (0, 1)
    for order, done in (
      ('counterclockwise', ('teacher', 'stage_1', 'thaw')),
      ('scratch', ('teacher', 'scratch')),
    )
  ]
  accuracies = [row['accuracy'] for row in found['rows']]
  assert [r.phases[-1]['accuracy'] for r in records] == accuracies


def test_the_orders_of_a_seed_share_one_teacher(compared):
  directory, found = compared
  for teacher in found['teachers']:
    accuracies = {
      json.loads((path / 'summary.json').read_text())['teacher']['accuracy']
      for path in (directory / f'seed_{teacher["seed"]}').iterdir()
    }
    assert accuracies == {teacher['accuracy']}
  assert [teacher['seed'] for teacher in found['teachers']] == [0, 1]


def test_the_table_is_mean_and_deviation(compared):
  directory, found = compared
  accuracies = [
    row['accuracy'] for row in found['rows'] if row['order'] == 'scratch'
  ]
  expected = (
    f'{statistics.mean(accuracies):.4f} ± {statistics.stdev(accuracies):.4f}'
  )
  (line,) = [
    line
    for line in (directory / 'compare.md').read_text().splitlines()
    if line.startswith('| scratch')
  ]
  assert [cell.strip() for cell in line.split('|')][2] == expected


def test_finished_runs_are_not_run_again(compared):
  directory, found = compared
  paths = sorted(directory.glob('seed_*/*/summary.json'))
  before = [path.stat().st_mtime_ns for path in paths]
  assert _compare(directory) == found
  assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_moved_workdir_and_another_first_order_go_on(compared, tmp_path):
  directory, found = compared
  moved = tmp_path / 'moved'
  shutil.copytree(directory, moved)
  again = _compare(moved, orders=ORDERS[::-1])
  key = lambda row: (row['seed'], row['order'])  # noqa: E731
  assert sorted(again['rows'], key=key) == sorted(found['rows'], key=key)


def test_one_diverging_run_does_not_stop_the_others(
  tmp_path, monkeypatch, quick_compilation
):
  real = training.train_and_evaluate

  def one_diverges(values, directory, **arguments):
    if values['order'] == 'counterclockwise':
      raise NonFiniteLossError('stage_1, step 3: kd is nan')
    return real(values, directory, **arguments)

  monkeypatch.setattr(training, 'train_and_evaluate', one_diverges)
  with pytest.raises(
    NonFiniteLossError, match=r'^counterclockwise, seed 0: stage_1, step 3'
  ):
    _compare(tmp_path / 'runs', seeds=1)
  found = json.loads((tmp_path / 'runs' / 'compare.json').read_text())
  assert [row['order'] for row in found['rows']] == ['scratch']


OBJECTIVES = ('ce + 0.1*at(power=2, at=(0, 1))', 'kd')


@pytest.fixture(scope='module')
def objectives_compared(tmp_path_factory, quick_compilation):
  directory = tmp_path_factory.mktemp('objectives') / 'runs'
  return directory, _compare_objectives(directory, OBJECTIVES)


def _compare_objectives(directory, objectives, **changes):
  return comparison.compare(
    tiny_run.values(**CHANGES | changes),
    directory,
    seeds=1,
    orders=('joint', 'joint_inherited'),
    objectives=objectives,
    console=tiny_run.console(),
  )


def test_objectives_side_by_side(objectives_compared):
  directory, found = objectives_compared
  assert [(row['objective'], row['order']) for row in found['rows']] == [
    (objective, order)
    for objective in OBJECTIVES
    for order in ('joint', 'joint_inherited')
  ]
  for row in found['rows']:
    folder = directory / 'seed_0' / comparison.folder(row['objective'])
    path = folder / row['order'] / 'summary.json'
    summary = json.loads(path.read_text())
    assert summary['config']['objective'] == row['objective']
    assert summary['student']['accuracy'] == row['accuracy']
  text = (directory / 'compare.md').read_text()
  assert '| objective | joint | joint_inherited | n |' in text
  for objective in OBJECTIVES:
    cells = [
      f'{row["accuracy"]:.4f}'
      for row in found['rows']
      if row['objective'] == objective
    ]
    assert f'| `{objective}` | {cells[0]} | {cells[1]} | 1 |' in text


def test_objectives_share_a_teacher_of_the_same_config_alone(
  objectives_compared, tmp_path
):
  directory, _ = objectives_compared
  runs = sorted((directory / 'seed_0').glob('*/*/summary.json'))
  assert len(runs) == 4
  teachers = [json.loads(path.read_text())['teacher'] for path in runs]
  assert len({teacher['seconds'] for teacher in teachers}) == 1
  # A second command with a shorter teacher trains its own.
  copy = tmp_path / 'runs'
  shutil.copytree(directory, copy)
  for path in copy.glob('seed_0/kd'):
    shutil.rmtree(path)
  for path in copy.glob('seed_0/ce*'):
    path.rename(copy / 'seed_0' / 'other')
  _compare_objectives(copy, ('kd',), teacher__steps=3)
  summary = json.loads((copy / 'seed_0/kd/joint/summary.json').read_text())
  assert summary['teacher']['steps'] == 3


def test_a_folder_for_each_objective():
  assert comparison.folder('kd') == 'kd'
  one = comparison.folder('ce + 0.9*kd')
  assert one == comparison.folder(' ce+0.9 * kd')
  assert one != comparison.folder('ce + 0.8*kd')
  assert one.startswith('ce_0.9_kd-')


def test_mean_std():
  assert compare_tables.mean_std([0.5]) == '0.5000'
  assert compare_tables.mean_std([0.1, 0.2, 0.3]) == '0.2000 ± 0.1000'


def test_an_unknown_order_is_found_before_anything_runs(tmp_path):
  with pytest.raises(UserError, match="'joined' is not known; did you mean"):
    _compare(tmp_path / 'runs', orders=('counterclockwise', 'joined'))
  assert not (tmp_path / 'runs').exists()


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--orders='], 'must name each order once'),
    (['--orders=joint,joint'], 'must name each order once'),
    (['--seeds=0'], '--seeds=0: must be at least 1'),
    (['--objectives=,'], '--objectives: must name at least one'),
    (['--objectives=kd,dk'], "--objectives = 'dk': method 'dk' is not known"),
    (
      ['--objectives=kd,0.1*ce+0.9*kd()'],
      "--objectives: 'kd' and '0.1*ce+0.9*kd()' are the same",
    ),
    (['--objectives=kd', '--orders=scratch'], 'scratch has no objective'),
    (['--objectives=simkd(factor=99)'], 'stage_1: simkd.factor = 99'),
    (['--config.inherit=5'], 'inherit = 5: must be'),
    (['--orders=nonsense'], "'nonsense' is not known"),
    (['--config.data.name=cifr10'], "did you mean 'cifar10'?"),
  ],
)
def test_wrong_usage_is_one_line(tmp_path, arguments, message):
  directory = tmp_path / 'runs'
  config = f'--config={tiny_run.__file__}'
  ended = cli.call(
    'cbkd_jax.compare', config, f'--workdir={directory}', *arguments
  )
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err
  assert not directory.exists()
