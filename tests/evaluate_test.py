"""`cbkd_jax.evaluate` gives the figures of the run itself."""

import json

import cli
import jax
import pytest
import tiny_run

from cbkd_jax import finished_run

CHANGES = {
  'teacher__model': 'tiny_run:shallow',
  'compression__keep': (1.0, 0.5),
  'teacher__steps': 20,
  'stage__steps': 2,
  'thaw__steps': 2,
  'order': 'joint_inherited',  # one stage to compile instead of three
}
SCORES = ('accuracy', 'cross_entropy', 'agreement', 'kl_to_teacher')


@pytest.fixture(scope='module')
def finished(tmp_path_factory, quick_compilation):
  directory = tmp_path_factory.mktemp('evaluate') / 'run'
  return directory, tiny_run.run(directory, CHANGES)


@pytest.mark.parametrize(('batch_size', 'devices'), [(5, 1), (32, 4), (7, 3)])
def test_the_figures_are_the_summarys(finished, batch_size, devices):
  directory, summary = finished
  found = finished_run.evaluate(
    directory,
    batch_size=batch_size,
    devices=tuple(jax.local_devices()[:devices]),
  )
  for name in SCORES:
    assert found['student'][name] == pytest.approx(
      summary['student'][name], rel=1e-4, abs=1e-6
    )
  assert found['teacher']['accuracy'] == summary['teacher']['accuracy']
  for name in 'teacher', 'student':
    for cost in 'params', 'flops_per_example', 'bytes':
      assert found[name][cost] == summary[name][cost]
  assert found['dataset'] == {'name': 'digits', 'test': 32}


def test_the_command_prints_json_and_a_table(finished):
  directory, summary = finished
  ended = cli.call(
    'cbkd_jax.evaluate', f'--workdir={directory}', '--json', '--batch_size=8'
  )
  assert ended.code == 0, ended.err
  accuracy = summary['student']['accuracy']
  assert json.loads(ended.out)['student']['accuracy'] == accuracy
  ended = cli.call('cbkd_jax.evaluate', f'--workdir={directory}')
  assert f'{accuracy:.4f}' in ended.out
  assert f'{summary["student"]["params"]:,}' in ended.out


def test_a_relative_workdir(finished, monkeypatch):
  directory, summary = finished
  monkeypatch.chdir(directory.parent)
  ended = cli.call('cbkd_jax.evaluate', f'--workdir={directory.name}', '--json')
  assert ended.code == 0, ended.err
  accuracy = summary['student']['accuracy']
  assert json.loads(ended.out)['student']['accuracy'] == accuracy


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir=/nowhere'], '/nowhere: holds no finished student'),
    ([], '--workdir is missing'),
    (['--workdir=/nowhere', '--batch_size=0'], '--batch_size=0: must be'),
  ],
)
def test_wrong_usage_is_one_line(arguments, message):
  ended = cli.call('cbkd_jax.evaluate', *arguments)
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err
