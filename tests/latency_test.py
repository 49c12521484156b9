"""`cbkd_jax.latency`: whose time is taken, and what the table says."""

import io
import json
import shutil

import cli
import numpy as np
import pytest
import rich.console
import shipped
from timing_test import Clock

from cbkd_jax import formats, forward_times, runtimes, timing
from cbkd_jax.errors import UserError
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
  directory = tmp_path_factory.mktemp('latency') / 'run'
  shipped.write(directory)
  return directory


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


def _onnx(path, dtype='FLOAT', shape=('batch', 8, 8, 1)):
  """A file whose network adds up its images' pixels in float."""
  onnx = pytest.importorskip('onnx', reason="needs the extra 'onnx'")
  helper, kinds = onnx.helper, onnx.TensorProto
  graph = helper.make_graph(
    [
      helper.make_node('Cast', ['x'], ['f'], to=kinds.FLOAT),
      helper.make_node('ReduceSum', ['f', 'axes'], ['y'], keepdims=0),
    ],
    'sum',
    [helper.make_tensor_value_info('x', getattr(kinds, dtype), shape)],
    [helper.make_tensor_value_info('y', kinds.FLOAT, (shape[0], 1))],
    [helper.make_tensor('axes', kinds.INT64, (2,), (1, 2))],
  )
  opset = helper.make_operatorsetid('', 17)
  model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(model.SerializeToString())
  return path


@pytest.fixture
def written(monkeypatch):
  """What is written in ONNX: whether it normalises, by file."""
  for library in 'onnx', 'onnxruntime':
    pytest.importorskip(library, reason="needs the extra 'onnx'")
  onnx, found = formats.module('onnx'), {}
  write = onnx.write

  def recorded(network, path):
    found[path.name] = network.normalised
    write(network, path)

  monkeypatch.setattr(onnx, 'write', recorded)
  return found


def _in_onnx_runtime(directory, tmp_path, *arguments):
  ended = cli.call(
    'cbkd_jax.latency',
    *(f'--workdir={directory}', '--batch_sizes=2', '--rounds=2'),
    *('--runtimes=onnxruntime', f'--json={tmp_path}/found.json', *arguments),
  )
  assert (ended.code, ended.err) == (0, '')
  return json.loads((tmp_path / 'found.json').read_text())


def test_what_is_not_exported_is_written_for_the_moment(
  finished, tmp_path, written
):
  other = _onnx(tmp_path / 'other.onnx', 'UINT8')
  found = _in_onnx_runtime(finished, tmp_path, f'--files={other}')
  assert written == {'teacher.onnx': False, 'student.onnx': False}
  names = ['teacher', 'student', 'other.onnx']
  assert [row['network'] for row in found['rows']] == names
  about = found['runtimes']['onnxruntime']
  assert about['files'] == {'other.onnx': str(other)}
  assert about['threads'] == runtimes.threads() >= 1
  assert not (finished / 'export').exists()


def test_exported_files_are_taken(finished, tmp_path, written):
  """The teacher is written anew where it takes other images."""
  directory = tmp_path / 'run'
  shutil.copytree(finished, directory)
  for name in 'student', 'student_int8', 'teacher':
    kind = 'FLOAT' if name == 'teacher' else 'UINT8'
    _onnx(directory / 'export' / f'{name}.onnx', kind)
  found = _in_onnx_runtime(directory, tmp_path)
  assert written == {'teacher.onnx': True}
  names = ['teacher', 'student', 'student int8']
  assert [row['network'] for row in found['rows']] == names
  assert found['runtimes']['onnxruntime']['files'] == {
    'student': f'{directory}/export/student.onnx',
    'student int8': f'{directory}/export/student_int8.onnx',
  }
  _onnx(directory / 'export' / 'teacher.onnx', 'UINT8')
  written.clear()
  _in_onnx_runtime(directory, tmp_path)
  assert written == {}
  # Without normalisation it has less to do than the student.
  _onnx(directory / 'export' / 'student_int8.onnx', 'FLOAT')
  found = _in_onnx_runtime(directory, tmp_path)
  names = ['teacher', 'student']
  assert [row['network'] for row in found['rows']] == names


def test_beside_an_int8_file_alone_all_normalise(finished, tmp_path, written):
  directory = tmp_path / 'run'
  shutil.copytree(finished, directory)
  _onnx(directory / 'export' / 'student_int8.onnx', 'UINT8')
  found = _in_onnx_runtime(directory, tmp_path)
  assert written == {'teacher.onnx': True, 'student.onnx': True}
  names = ['teacher', 'student', 'student int8']
  assert [row['network'] for row in found['rows']] == names


@pytest.mark.parametrize(
  ('made', 'message'),
  [
    ({'shape': ('batch', 8, 9, 1)}, "takes tensor(float) ['batch', 8, 9, 1]"),
    ({'shape': (4, 8, 8, 1)}, 'takes tensor(float) [4, 8, 8, 1], but must'),
    ({'dtype': 'INT64'}, 'takes tensor(int64)'),
    (None, 'ONNX Runtime cannot read it: '),
  ],
)
def test_files_of_other_networks_are_refused(
  finished, tmp_path, written, made, message
):
  path = tmp_path / 'other.onnx'
  if made is None:
    path.write_bytes(b'no network')
  else:
    _onnx(path, **made)
  ended = cli.call(
    'cbkd_jax.latency',
    *(f'--workdir={finished}', '--runtimes=onnxruntime', f'--files={path}'),
  )
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.count('\n') == 1
  assert f'error: {path}: {message}' in ended.err


def test_without_onnx_runtime_it_is_left_out_unless_asked_for(
  finished, monkeypatch
):
  message = "the format 'onnx' needs onnxruntime: pip install '.[onnx]'"

  def missing(name):
    raise UserError(message)

  monkeypatch.setattr(formats, 'module', missing)
  arguments = f'--workdir={finished}', '--rounds=1', '--batch_sizes=1'
  ended = cli.call('cbkd_jax.latency', *arguments)
  assert ended.code == 0
  assert ended.out.endswith(f'\nonnxruntime is left out: {message}\n')
  ended = cli.call('cbkd_jax.latency', *arguments, '--runtimes=onnxruntime')
  assert (ended.code, ended.err) == (2, f'error: {message}\n')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], '--workdir is missing'),
    (['--workdir=/nowhere'], '/nowhere: holds no finished student'),
    (['--workdir=/a', '--batch_sizes=1,x'], '--batch_sizes: 1,x: must be numb'),
    (
      ['--workdir=/a', '--batch_sizes=0'],
      '--batch_sizes=0: must be numbers of',
    ),
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
