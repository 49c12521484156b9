"""Runs in a bucket: the same files as on a disk, and the same numbers."""

import importlib.util
import json
import os
import shutil

import cli
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import buckets, checkpoints, phases, student, workdir
from cbkd_jax.data import digits
from cbkd_jax.errors import UserError
from cbkd_jax.reporting import record

# Two phases: little to compile.
CHANGES = {
  'order': 'scratch',
  'teacher__model': 'tiny_run:shallow',
  'compression__keep': (1.0, 0.5),
  'teacher__steps': 8,
}
STEPS = {'teacher': 8, 'scratch': 18}
CONFIG = f'--config={tiny_run.__file__}'


@pytest.fixture(scope='module')
def server():
  """A bucket named 'bucket'."""
  pytest.importorskip('gcsfs')
  import fake_gcs

  with pytest.MonkeyPatch.context() as patch, fake_gcs.serve('bucket') as found:
    for name, value in found.environment().items():
      patch.setenv(name, value)
    yield found


@pytest.fixture(scope='module')
def disk(tmp_path_factory, quick_compilation):
  """The workdir of a run on a disk; not to be changed."""
  directory = tmp_path_factory.mktemp('disk') / 'run'
  tiny_run.run(directory, CHANGES)
  return directory


@pytest.fixture(scope='module')
def run(server, disk):
  """The same run in the bucket; not to be changed.

  Bucket 'killed' is as it was while the second phase's second checkpoint was
  being written: what a killed process would have left.
  """

  def uploaded(bucket, name):
    if (
      name.startswith('run/scratch/8/state/') and 'killed' not in server.buckets
    ):
      server.buckets['killed'] = dict(server.buckets[bucket])

  server.uploaded = uploaded
  directory = buckets.path('gs://bucket/run', '--workdir')
  tiny_run.run(directory, CHANGES)
  server.uploaded = lambda *_: None
  return directory


def _assert_same(ours, disk):
  log = (ours / 'metrics.jsonl').read_bytes()
  assert log == (disk / 'metrics.jsonl').read_bytes()
  variables = student.read(ours / 'student')[1]
  assert tiny.same(variables, student.read(disk / 'student')[1])
  found, expected = (
    json.loads((d / 'summary.json').read_text()) for d in (ours, disk)
  )
  for key in 'student', 'compression':
    assert found[key] == expected[key]


def test_a_run_leaves_the_same_in_a_bucket(server, run, disk):
  _assert_same(run, disk)
  names = {p.name for p in run.iterdir()}
  # Nothing frees the lock of a process that died: there is none.
  assert names == set(os.listdir(disk)) - {'.lock'}
  for phase, steps in STEPS.items():
    assert [p.name for p in (run / phase).iterdir()] == [str(steps)]
  written = sum(
    len(data)
    for name, (_, data) in server.buckets['bucket'].items()
    if name.startswith('run/tensorboard/')
  )
  board = (disk / 'tensorboard').iterdir()
  assert written == sum(p.stat().st_size for p in board)


def test_what_a_report_reads_is_the_same_in_a_bucket(run, disk):
  found, expected = record.read(run), record.read(disk)
  assert (found.name, found.done) == ('run', expected.done)
  assert found.metrics == expected.metrics
  assert found.config == expected.config
  summary = run / 'summary.json'
  kept = summary.read_text()
  summary.unlink()
  try:
    unfinished = record.read(run)
  finally:
    summary.write_text(kept)
  assert not unfinished.finished
  assert unfinished.metrics == expected.metrics
  assert [p['accuracy'] for p in unfinished.phases] == [
    p['accuracy'] for p in expected.phases
  ]


def test_a_command_is_kept_in_a_bucket(run):
  workdir.add_command(run, 'one')
  workdir.add_command(run, 'two')
  assert workdir.commands(run) == 'one\ntwo'
  (run / 'command.txt').unlink()


def test_a_finished_run_in_a_bucket_says_so(run):
  console = tiny_run.console()
  tiny_run.run(run, CHANGES, console=console)
  assert 'gs://bucket/run: already finished' in console.file.getvalue()


@pytest.mark.thorough
def test_a_write_that_died_half_way_in_a_bucket(run, disk, monkeypatch):
  """The step has its name, but not the mark that it is whole."""
  killed = buckets.path('gs://killed/run', '--workdir')
  steps = sorted(p.name for p in (killed / 'scratch').iterdir())
  assert steps == ['4', '8']
  console = tiny_run.console()
  with monkeypatch.context() as patch:
    patch.setattr(phases.step, 'create_train_state', None)
    tiny_run.run(killed, CHANGES, console=console)
  assert (
    'scratch: ignored a half-written checkpoint (step 8): gs://killed/run/scratch/8\n'
  ) in console.file.getvalue()
  _assert_same(killed, disk)
  assert [p.name for p in (killed / 'scratch').iterdir()] == ['18']


def test_the_student_is_read_from_a_bucket(run, disk):
  images = digits.open_split('test[:8]', 'test').images
  ours = cbkd_jax.load_student('gs://bucket/run')(images)
  assert tiny.same(ours, cbkd_jax.load_student(disk)(images))
  found = checkpoints.teacher_checkpoint('gs://bucket/run')
  assert str(found) == 'gs://bucket/run/teacher/8/state'
  ended = cli.call('cbkd_jax.evaluate', '--workdir=gs://bucket/run', '--json')
  assert (ended.code, ended.err) == (0, '')
  summary = json.loads((disk / 'summary.json').read_text())
  accuracy = json.loads(ended.out)['student']['accuracy']
  assert accuracy == summary['student']['accuracy']


def test_phases_are_taken_from_a_bucket_and_to_one(server, run, tmp_path):
  first, second = tmp_path / 'run', buckets.path('gs://bucket/copy', '')
  first.mkdir()
  workdir.begin(first, {}, run, ['teacher', 'scratch'])
  workdir.begin(second, {}, first, ['teacher'])
  for copy, phase in (
    (first, 'teacher'),
    (first, 'scratch'),
    (second, 'teacher'),
  ):
    assert checkpoints.is_finished(copy / phase)
  shutil.rmtree(first)
  objects = server.buckets['bucket']
  copied = {n.removeprefix('copy/') for n in objects if n.startswith('copy/')}
  whole = {n.removeprefix('run/') for n in objects if n.startswith('run/tea')}
  assert copied == whole | {'config.json', 'metrics.jsonl'}
  for name in whole:
    assert objects[f'copy/{name}'][1] == objects[f'run/{name}'][1]


def test_what_others_write_is_seen_at_once(server):
  path = buckets.path('gs://bucket/others', '')
  (path / 'a').write_text('a')
  assert [p.name for p in path.iterdir()] == ['a']
  server.buckets['bucket']['others/b'] = 1, b'b'
  assert (path / 'b').exists()
  assert sorted(p.name for p in path.iterdir()) == ['a', 'b']


def test_another_config_in_a_bucket_is_refused(run):
  with pytest.raises(UserError, match=r'gs://bucket/run: holds a run of anoth'):
    tiny_run.run(run, {**CHANGES, 'seed': 7})


def test_a_bucket_that_is_not_there_is_told_in_one_line(server):
  ended = cli.call('cbkd_jax.train', CONFIG, '--workdir=gs://none/run')
  assert (ended.code, ended.err.count('\n')) == (2, 1)
  assert ended.err.startswith('error: workdir = gs://none/run: FileNotFound')


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('s3://bucket/run', 'must be a directory or gs://BUCKET/DIRECTORY'),
    ('gs://bucket', 'must be gs://BUCKET/DIRECTORY'),
    ('gs://bucket/', 'must be gs://BUCKET/DIRECTORY'),
    ('gs:///run', 'must be gs://BUCKET/DIRECTORY'),
  ],
)
def test_addresses_that_are_refused(text, reason):
  with pytest.raises(UserError) as caught:
    buckets.path(text, '--workdir')
  assert str(caught.value) == f'--workdir = {text!r}: {reason}'


def test_what_is_missing_for_buckets_is_named(monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name, *more: None if name == 'gcsfs' else find(name, *more),
  )
  ended = cli.call('cbkd_jax.train', CONFIG, '--workdir=gs://bucket/run')
  assert (ended.code, ended.err) == (
    2,
    "error: --workdir = 'gs://bucket/run': buckets need gcsfs; pip install "
    'gcsfs\n',
  )


def test_a_directory_stays_as_it_is(tmp_path):
  assert buckets.path(tmp_path, '') == tmp_path
  assert buckets.path('runs/a', '').as_posix() == 'runs/a'
  home = os.path.expanduser('~')
  assert buckets.path('~/a', '').as_posix() == f'{home}/a'
  with buckets.told(tmp_path, ''), pytest.raises(ZeroDivisionError):
    raise ZeroDivisionError
