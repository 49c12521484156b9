"""`cbkd_jax.latency`: whose time is taken, and what the table says."""

import io
import json

import cli
import numpy as np
import pytest
import rich.console
import untrained
from timing_test import Clock

from cbkd_jax import forward_times, timing
from cbkd_jax.forward_times import Effort
from cbkd_jax.runtimes import Runtime

pytestmark = pytest.mark.usefixtures('quick_compilation')

ABOUT = {'version': '1.2.3', 'device': 'A CPU of some name', 'threads': 64}


def test_ratios_are_those_of_the_rounds():
  """Here the machine became slower, with a student of half the time."""
  times = {
    'teacher': np.array([0.002, 0.004, 0.006, 0.010, 0.020]),
    'student': np.array([0.001, 0.002, 0.003, 0.005, 0.005]),
    'student int8': np.array([0.001, 0.001, 0.002, 0.005, 0.010]),
  }
  teacher, student, int8 = forward_times.rows('jax', 64, times)
  assert teacher == {
    'runtime': 'jax',
    'batch_size': 64,
    'network': 'teacher',
    'rounds': 5,
    'milliseconds': {
      'median': pytest.approx(6),
      'quartiles': pytest.approx([4, 10]),
    },
    'images_per_second': pytest.approx(64 / 0.006),
    'teacher_over_this': None,
  }
  assert student['network'] == 'student'
  assert student['milliseconds']['median'] == pytest.approx(3)
  # 2, 2, 2, 2 and 4: the medians' quotient would be 2 as well, but see int8.
  assert student['teacher_over_this'] == {
    'median': pytest.approx(2),
    'quartiles': pytest.approx([2, 2]),
  }
  # 2, 4, 3, 2, 2; the quotient of the medians is 3.
  assert int8['teacher_over_this'] == {
    'median': pytest.approx(2),
    'quartiles': pytest.approx([2, 3]),
  }


def test_the_second_call_of_a_turn_counts(monkeypatch):
  """The first one brings back what another network drove out."""
  clock = Clock()
  monkeypatch.setattr(timing.time, 'perf_counter', clock)

  def network(cold, warm):
    def prepare(batch_size):
      return clock.lasting(*[cold * batch_size, warm * batch_size] * 50)

    return prepare

  networks = {'teacher': network(3, 0.5), 'student': network(2, 0.125)}
  found = forward_times.measure(
    Runtime('jax', ABOUT, networks), (1, 4), Effort(rounds=6, seconds=1e9)
  )
  assert [
    (row['batch_size'], row['network'], row['rounds']) for row in found
  ] == [
    (1, 'teacher', 6),
    (1, 'student', 6),
    (4, 'teacher', 6),
    (4, 'student', 6),
  ]
  medians = [row['milliseconds']['median'] for row in found]
  np.testing.assert_allclose(medians, [500, 125, 2000, 500])
  assert found[3]['teacher_over_this']['median'] == 4
  assert found[3]['images_per_second'] == 8


def test_the_table_fits_80_columns():
  times = {
    'teacher': np.array([12.3456, 12.5]),
    'student': np.array([0.0123456, 0.013]),
    'student_of_another_name_int8.onnx': np.array([0.0051, 0.0053]),
  }
  rows = forward_times.rows('onnxruntime', 1, times)
  rows += forward_times.rows('onnxruntime', 1024, times)
  out = io.StringIO()
  console = rich.console.Console(file=out, width=80)
  forward_times.show(ABOUT, rows, console)
  lines = [line.rstrip() for line in out.getvalue().splitlines()]
  assert lines[0] == 'onnxruntime 1.2.3 on A CPU of some name (64 threads)'
  assert max(map(len, lines)) <= 80
  assert '…' not in out.getvalue()
  for text in ('12,423', '12.67', '12.51-12.84', '196,923', '981', '971-990'):
    assert text in out.getvalue()


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  return untrained.write(tmp_path_factory.mktemp('latency') / 'run')


def test_both_networks_of_a_run_are_timed(finished, tmp_path):
  ended = cli.call(
    'cbkd_jax.latency',
    *(f'--workdir={finished}', '--runtimes=jax', '--batch_sizes=1,3'),
    *('--rounds=2', f'--json={tmp_path}/found.json'),
  )
  assert (ended.code, ended.err) == (0, '')
  found = json.loads((tmp_path / 'found.json').read_text())
  assert [(row['batch_size'], row['network']) for row in found['rows']] == [
    (1, 'teacher'),
    (1, 'student'),
    (3, 'teacher'),
    (3, 'student'),
  ]
  for row in found['rows']:
    assert row['rounds'] == 2
    assert 0 < row['milliseconds']['median'] < 10_000
  assert found['runtimes'].keys() == {'jax'}
  assert f'jax {found["runtimes"]["jax"]["version"]} on ' in ended.out


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir is missing'),
    (['--workdir=/nowhere'], '/nowhere: holds no finished student'),
    (['--workdir=/a', '--batch_sizes=1,x'], '--batch_sizes: 1,x: must be numb'),
    (['--workdir=/a', '--batch_sizes=0'], '--batch_sizes: 0: must be at least'),
    (['--workdir=/a', '--runtimes=jxa'], "--runtimes: 'jxa': must be one of j"),
    (['--workdir=/a', '--files=a.txt'], '--files: a.txt: must be an ONNX file'),
    (['--workdir=/a', '--files=a.onnx'], '--files: a.onnx: must be an ONNX fi'),
    (['--workdir=/a', '--json=a.txt'], '--json: a.txt: must end in .json'),
  ],
)
def test_wrong_usage_is_one_line(arguments, message):
  ended = cli.call('cbkd_jax.latency', *arguments)
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.count('\n') == 1
  assert message in ended.err
