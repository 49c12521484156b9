"""The files of a run besides its checkpoints."""

import json
import os
import shlex
import signal
import subprocess
import sys

import pytest

from cbkd_jax import command, workdir
from cbkd_jax.errors import UserError

DEFAULTS = {'seed': 0, 'thaw': {'epochs': 2.0, 'steps': None}, 'keep': (1, 0.5)}

_HOLD = """
import sys, time
from pathlib import Path
from cbkd_jax import workdir
with workdir.locked(Path(sys.argv[1])):
  print('held', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the lock of `tmp_path`."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  process = subprocess.Popen(
    [sys.executable, '-c', _HOLD, str(tmp_path)],
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, 'PYTHONPATH': root},
  )
  with process:
    assert process.stdout.readline() == 'held\n'
    yield process
    process.kill()


def test_json_is_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / 'summary.json'
  workdir.write_json(path, {'a': (1, 2.5)})
  assert workdir.read_json(path) == {'a': [1, 2.5]}
  with pytest.raises(TypeError):
    workdir.write_json(path, {'a': object()})
  assert json.loads(path.read_text()) == {'a': [1, 2.5]}


def test_broken_json_is_named(tmp_path):
  path = tmp_path / 'config.json'
  path.write_text('{"seed": ')
  with pytest.raises(UserError, match=r'config\.json is not valid JSON'):
    workdir.check_config(tmp_path, DEFAULTS, DEFAULTS)


def test_a_held_lock_names_its_process(tmp_path, holder):
  for take in workdir.check_free, lambda d: workdir.locked(d).__enter__():
    with pytest.raises(UserError, match=f'in use by process {holder.pid}$'):
      take(tmp_path)
  assert (tmp_path / '.lock').read_text() == f'{holder.pid}\n'


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
  os.kill(holder.pid, signal.SIGKILL)
  holder.wait()
  assert (tmp_path / '.lock').read_text() == f'{holder.pid}\n'
  workdir.check_free(tmp_path)
  with workdir.locked(tmp_path):
    assert (tmp_path / '.lock').read_text() == f'{os.getpid()}\n'
    with pytest.raises(UserError, match=f'in use by process {os.getpid()}$'):
      workdir.check_free(tmp_path)
  workdir.check_free(tmp_path)


def test_to_look_for_a_lock_writes_nothing(tmp_path):
  workdir.check_free(tmp_path / 'new')
  assert not (tmp_path / 'new').exists()
  (tmp_path / '.lock').write_text('123\n')
  workdir.check_free(tmp_path)
  assert (tmp_path / '.lock').read_text() == '123\n'


def test_a_workdir_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').touch()
  directory = tmp_path / 'file' / 'run'
  with (
    pytest.raises(UserError, match='Not a directory'),
    workdir.locked(directory),
  ):
    pass
  with pytest.raises(UserError, match='is a file, must be a directory'):
    workdir.check_config(tmp_path / 'file', DEFAULTS, DEFAULTS)


def test_the_same_config_resumes(tmp_path):
  assert not workdir.check_config(tmp_path / 'new', DEFAULTS, DEFAULTS)
  assert not workdir.check_config(tmp_path, DEFAULTS, DEFAULTS)
  workdir.write_json(tmp_path / 'config.json', DEFAULTS)
  assert workdir.check_config(tmp_path, DEFAULTS, DEFAULTS)


def test_another_config_is_refused_with_every_field_that_differs(tmp_path):
  workdir.write_json(tmp_path / 'config.json', DEFAULTS)
  new = {'seed': 1, 'thaw': {'epochs': 2.0, 'steps': 7}, 'keep': (1, 0.25)}
  with pytest.raises(UserError) as caught:
    workdir.check_config(tmp_path, new, DEFAULTS)
  assert str(caught.value) == (
    f'workdir = {tmp_path}: holds a run of another config; different: '
    'keep ([1, 0.5] there, [1, 0.25] here), seed (0 there, 1 here), '
    'thaw.steps (None there, 7 here)'
  )


def test_a_field_that_an_older_version_did_not_know_is_its_default(tmp_path):
  old = {'seed': 3, 'thaw': {'epochs': 2.0}}
  workdir.write_json(tmp_path / 'config.json', old)
  assert workdir.check_config(tmp_path, {**DEFAULTS, 'seed': 3}, DEFAULTS)
  with pytest.raises(UserError, match=r'different: keep \(\[1, 0.5\] there'):
    workdir.check_config(
      tmp_path, {**DEFAULTS, 'seed': 3, 'keep': (1, 1)}, DEFAULTS
    )


def test_a_field_that_changes_no_number_may_differ(tmp_path):
  old = {**DEFAULTS, 'compilation_cache': '/there'}
  workdir.write_json(tmp_path / 'config.json', old)
  for place in 'off', '':
    new = {**DEFAULTS, 'compilation_cache': place}
    assert workdir.check_config(tmp_path, new, DEFAULTS)
  with pytest.raises(UserError, match=r'different: seed \(0 there, 1 here\)$'):
    workdir.check_config(tmp_path, {**new, 'seed': 1}, DEFAULTS)


def test_files_of_something_else_are_left_alone(tmp_path):
  (tmp_path / 'thesis.tex').touch()
  with pytest.raises(UserError, match=r"'thesis\.tex' but no config\.json"):
    workdir.check_config(tmp_path, DEFAULTS, DEFAULTS)


def test_a_start_that_was_cut_short_is_done_again(tmp_path, monkeypatch):
  source, target = tmp_path / 'source', tmp_path / 'target'
  for phase in 'teacher', 'stage_1':
    (source / phase).mkdir(parents=True)
    (source / phase / 'weights').write_text(phase)
  (source / 'metrics.jsonl').write_text('{}\n')
  target.mkdir()
  (target / '.lock').touch()
  write = workdir.write_json

  def cut_short(*_):
    (target / '.config.json.tmp').write_text('{')
    raise KeyboardInterrupt

  monkeypatch.setattr(workdir, 'write_json', cut_short)
  for phases in (), ('teacher', 'stage_1'):
    with pytest.raises(KeyboardInterrupt):
      workdir.begin(target, DEFAULTS, source, phases)
    # Nobody's files, so not refused; and no run yet, so not resumed.
    assert not workdir.check_config(target, DEFAULTS, DEFAULTS)
  monkeypatch.setattr(workdir, 'write_json', write)
  workdir.begin(target, DEFAULTS, source, ('teacher',))
  assert sorted(os.listdir(target)) == [
    '.lock',
    'config.json',
    'metrics.jsonl',
    'teacher',
  ]
  assert (target / 'teacher' / 'weights').read_text() == 'teacher'
  assert workdir.check_config(target, DEFAULTS, DEFAULTS)


def test_each_different_command_is_kept_once(tmp_path):
  assert workdir.commands(tmp_path) is None
  for line in ('one', 'one', 'one --more', 'one --more', 'more'):
    workdir.add_command(tmp_path, line)
  assert workdir.commands(tmp_path) == 'one\none --more\nmore'
  assert (tmp_path / 'command.txt').read_text().endswith('more\n')


def test_a_command_as_it_would_be_typed(monkeypatch):
  argument = "--config.objective=ce + 2*kd('a')"
  monkeypatch.setattr(sys, 'argv', ['/x/train.py', argument])
  found = command.line('cbkd_jax.train')
  assert shlex.split(found) == ['python', '-m', 'cbkd_jax.train', argument]
