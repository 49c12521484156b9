"""Several processes are one run: same numbers, same end, whatever happens."""

import json
import signal
import time

import cli
import jax
import jobs
import numpy as np
import pytest
import steps_process
import tiny_run

from cbkd_jax import processes, replicas
from cbkd_jax.errors import UserError

CONFIG = f'--config={jobs.HERE}/tiny_run.py'


@pytest.mark.thorough
def test_the_same_numbers_in_one_process(
  tmp_path, monkeypatch, quick_compilation
):
  """20 steps: two processes' devices are one process's virtual devices."""
  port, count = jobs.free_port(), 2
  commands = [
    [jobs.HERE / 'steps_process.py', count, rank, port, tmp_path]
    for rank in range(count)
  ]
  devices = jax.device_count() // count
  with jobs.started(commands, devices=devices) as started:
    monkeypatch.setattr(replicas, '_LEAST_SHARDED', 1)
    expected = steps_process.everything()
    for process in started:
      out, err = process.communicate()
      assert process.returncode == 0, err[-2000:]
      # One's mistake is all others' too; so is another config.
      assert out.splitlines()[-4:] == [
        'process 1: no such file False',
        'process 1 has another config than process 0; all processes must be '
        'started with the same command, but for --process_id False',
        'nothing',
        '1',
      ]
  found = dict(np.load(tmp_path / 'found.npz'))
  flat = {
    f'{name}/{i:03}': array
    for name, arrays in expected.items()
    for i, array in enumerate(arrays)
  }
  assert set(found) == set(flat)
  for name, array in flat.items():
    # The order of a sum over replicas may be another one.
    np.testing.assert_allclose(
      found[name], array, rtol=1e-5, atol=2e-6, err_msg=name
    )
  first, last = found['pmap/000'][:2].mean(), found['pmap/000'][-2:].mean()
  assert last < first  # it has learnt something


LONG = (
  '--config.teacher.model=tiny_run:shallow',
  '--config.compression.keep=1,.5',
  '--config.teacher.steps=100000',
  '--config.checkpoint_every_steps=8',
  '--config.log_every_steps=1',
)


def _records(directory):
  path = directory / 'metrics.jsonl'
  if not path.exists():
    return []
  whole = path.read_text().rpartition('\n')[0].splitlines()
  return [json.loads(line) for line in whole]


def _reaches(directory, step, started):
  """Waits until the log shows a step of the teacher."""
  until = time.monotonic() + 90
  while time.monotonic() < until:
    if any(record['step'] >= step for record in _records(directory)):
      return
    for process in started:
      assert process.poll() is None, process.communicate()
    time.sleep(0.1)
  raise AssertionError(f'step {step} was not reached')


def _last_saved(directory):
  return max(
    int(path.name)
    for path in (directory / 'teacher').iterdir()
    if path.name.isdigit()
  )


def test_a_signal_or_a_death_in_one_of_two(tmp_path):
  """SIGTERM to one: both save the same step. SIGKILL: the other one ends.

  The first time JAX finds the other process by itself.
  """
  directory = tmp_path / 'run'
  arguments = [f'--workdir={directory}', *LONG]
  commands = [jobs.train(*arguments)] * 2
  with jobs.started(commands, jobs.under_slurm(2)) as started:
    _reaches(directory, 10, started)
    started[1].send_signal(signal.SIGTERM)
    ended = [process.communicate() for process in started]
  assert [process.returncode for process in started] == [75, 75]
  stopped = _last_saved(directory)
  assert f'error: teacher: stopped at step {stopped} of 100000' in ended[0][1]
  assert 'error' not in ended[1][1]
  # The log ends where the checkpoint is, each step once: process 0 wrote it.
  records = _records(directory)
  assert [record['step'] for record in records] == list(range(1, stopped + 1))

  commands = jobs.train_together(2, *arguments)
  with jobs.started(commands) as started:
    _reaches(directory, stopped + 10, started)
    started[1].kill()
    began = time.monotonic()
    _, err = started[0].communicate()
    assert time.monotonic() - began < 60
  assert started[0].returncode == 4
  assert err.splitlines()[-1].startswith(
    'error: the other processes can no longer be reached'
  )
  saved = _last_saved(directory)
  assert saved > stopped
  before = {record['step']: record['loss'] for record in _records(directory)}

  # One process with its devices goes on from there.
  changes = {
    'teacher__model': 'tiny_run:shallow',
    'compression__keep': (1.0, 0.5),
    'teacher__steps': 100000,
    'checkpoint_every_steps': 8,
    'log_every_steps': 1,
  }
  asked = iter(range(5))

  def interrupted():
    return next(asked, None) is None

  with pytest.raises(Exception, match='stopped at step'):
    tiny_run.run(directory, changes, interrupted)
  after = {record['step']: record['loss'] for record in _records(directory)}
  assert max(after) > saved
  assert sorted(after) == list(range(1, max(after) + 1))
  # What both know, up to the checkpoint, is the same record.
  assert all(after[step] == before[step] for step in range(1, saved + 1))
  for step in range(saved + 1, min(max(after), max(before)) + 1):
    np.testing.assert_allclose(after[step], before[step], rtol=1e-3)


def test_processes_of_different_configs_write_nothing(tmp_path, monkeypatch):
  asked = []

  def differs(values):
    asked.append(values['config']['seed'])
    raise UserError('another config')

  monkeypatch.setattr(processes, 'check_same', differs)
  ended = cli.call(
    'cbkd_jax.train', CONFIG, f'--workdir={tmp_path}/run', '--config.seed=7'
  )
  assert (ended.code, ended.err) == (2, 'error: another config\n')
  assert asked == [7]
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('arguments', 'expected'),
  [
    (['--processes=2'], '--coordinator is missing; --coordinator, --proc'),
    (
      ['--coordinator=localhost:1', '--processes=0', '--process_id=0'],
      '--processes=0: must be at least 1',
    ),
    (
      ['--coordinator=localhost:1', '--processes=2', '--process_id=2'],
      '--process_id=2: must be from 0 to 1, below --processes=2',
    ),
    (
      ['--coordinator=localhost', '--processes=2', '--process_id=1'],
      '--coordinator=localhost: must be HOST:PORT',
    ),
    (['--join_timeout=0'], '--join_timeout=0: must be at least 1'),
  ],
)
def test_flags_that_do_not_fit_together(tmp_path, arguments, expected):
  ended = cli.call(
    'cbkd_jax.train', CONFIG, f'--workdir={tmp_path}/run', *arguments
  )
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.startswith(f'error: {expected}')
  assert len(ended.err.splitlines()) == 1
  assert not (tmp_path / 'run').exists()


def test_a_coordinator_that_is_not_there(tmp_path):
  ended = cli.call(
    'cbkd_jax.train',
    CONFIG,
    f'--workdir={tmp_path}/run',
    f'--coordinator=localhost:{jobs.free_port()}',
    '--processes=2',
    '--process_id=1',
    '--join_timeout=1',
  )
  assert (ended.code, ended.out) == (4, '')
  assert 'process 0 was not there within --join_timeout=1' in ended.err
  assert len(ended.err.splitlines()) == 1
