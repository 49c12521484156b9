"""Whole runs: what they leave behind, and that they survive interruption."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import cli
import jax
import method_runs
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import (
  blocks,
  cache,
  errors,
  evaluation,
  phases,
  replicas,
  restoring,
  step,
  student,
  summary,
  training,
  workdir,
)
from cbkd_jax.data import digits, sampler
from cbkd_jax.errors import NonFiniteLossError, Preempted, UserError

STEPS = tiny_run.STEPS
PHASES = list(STEPS)
TIMES = ('seconds', 'compile_seconds', 'examples_per_second')
HERE = Path(__file__).parent


# The processes that tests start find what is compiled already, and get the
# same numbers.
COMPILATION = {
  'JAX_DISABLE_MOST_OPTIMIZATIONS': 'true',
  'JAX_DEFAULT_MATMUL_PRECISION': 'highest',
}


@pytest.fixture(scope='module')
def compilation(quick_compilation):
  """The environment of such a process."""
  # Another module may have compiled the same steps by other settings.
  _forget_programs()
  yield COMPILATION
  _forget_programs()


def _forget_programs():
  for module in blocks, cache, replicas, step:
    for function in vars(module).values():
      if hasattr(function, 'cache_clear'):
        function.cache_clear()
  jax.clear_caches()


@pytest.fixture(scope='module')
def whole(tmp_path_factory, compilation):
  """The workdir of a run that was never interrupted; not to be changed."""
  directory = tmp_path_factory.mktemp('whole') / 'run'
  tiny_run.run(directory)
  return directory


def _summary(directory):
  return json.loads((directory / 'summary.json').read_text())


def _figures(directory):
  """The summary without what differs from run to run: config and times."""
  found = _summary(directory)
  for figures in found['teacher'], *found['stages']:
    for name in TIMES:
      del figures[name]
  return {k: found[k] for k in ('teacher', 'stages', 'student', 'compression')}


def _lines(directory, stage=None):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  lines = [json.loads(line) for line in lines]
  return [line for line in lines if stage in (None, line['stage'])]


def _files(directory):
  return {
    str(path.relative_to(directory)): (
      path.stat().st_mtime_ns,
      path.read_bytes(),
    )
    for path in sorted(directory.rglob('*'))
    if path.is_file()
  }


def _assert_identical(directory, whole):
  """Same student bit for bit, same log byte for byte, same figures."""
  ours = student.read(directory / 'student')[1]
  assert tiny.same(ours, student.read(whole / 'student')[1])
  ours = (directory / 'metrics.jsonl').read_bytes()
  assert ours == (whole / 'metrics.jsonl').read_bytes()
  assert _figures(directory) == _figures(whole)


def _state(directory, phase):
  """The step and the arrays of a phase's checkpoint, by name."""
  (path,) = (directory / phase).iterdir()
  metadata = ocp.Checkpointer(ocp.PyTreeCheckpointHandler()).metadata(
    path / 'state'
  )
  tree = restoring.restore_tree(path / 'state', metadata.item_metadata.tree)
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return int(path.name), {
    '/'.join(k.key for k in key): np.asarray(leaf) for key, leaf in leaves
  }


class _After:
  """`interrupted` that says yes from its n-th call on."""

  def __init__(self, calls):
    self.calls = calls

  def __call__(self):
    self.calls -= 1
    return self.calls < 0


def test_the_workdir_holds_what_the_contract_says(whole):
  files = '.lock', 'config.json', 'metrics.jsonl', 'summary.json'
  folders = 'student', 'tensorboard', *PHASES
  assert set(os.listdir(whole)) == {*files, *folders}
  for phase, steps in STEPS.items():
    assert os.listdir(whole / phase) == [str(steps)]
  config = json.loads((whole / 'config.json').read_text())
  assert config == json.loads(json.dumps(tiny_run.values()))


def test_the_summary_has_every_figure(whole):
  found = _summary(whole)
  assert found['config'] == json.loads((whole / 'config.json').read_text())
  assert found['seed'] == 0
  assert found['versions']['jax'] == jax.__version__
  assert set(found['versions']) == {
    *('python', 'jax', 'jaxlib', 'flax', 'optax', 'orbax')
  }
  assert found['device'] == {'kind': 'cpu', 'count': 4, 'processes': 1}
  assert found['dataset'] == {
    'name': 'digits',
    'train': 96,
    'validation': 32,
    'test': 32,
  }
  assert [s['name'] for s in found['stages']] == PHASES[1:]
  assert [s['trained_blocks'] for s in found['stages']] == [[2], [1], [0, 1, 2]]
  assert [s['steps'] for s in found['stages']] == list(STEPS.values())[1:]
  for figures in found['stages']:
    assert 0 < figures['compile_seconds'] < figures['seconds']
    assert figures['examples_per_second'] > 0
    last = _lines(whole, figures['name'])[-2]
    assert figures['loss'] == last['loss'] > 0
    assert 0 <= figures['agreement'] <= 1
    assert figures['kl_to_teacher'] > 0
  thaw = found['stages'][-1]
  for name in 'accuracy', 'agreement', 'kl_to_teacher', 'cross_entropy':
    assert found['student'][name] == thaw[name]
  for kind in 'params', 'flops':
    name = 'flops_per_example' if kind == 'flops' else kind
    ratio = found['teacher'][name] / found['student'][name]
    assert found['compression'][f'{kind}_ratio'] == ratio > 1
    blocks = found['compression']['per_block']
    assert len(blocks) == 3
    assert found['teacher'][name] == sum(b['teacher'][name] for b in blocks)
    assert found['student'][name] == sum(b['student'][name] for b in blocks)
    assert blocks[0][f'{kind}_ratio'] == 1  # inherited
  # 3x3 convolutions with a bias, a scale and an offset, and the classifier.
  assert (
    found['teacher']['params']
    == sum(9 * i * o + 3 * o for i, o in zip((1, 4, 6), (4, 6, 8)))
    + 8 * 10
    + 10
  )


def test_the_wall_time_is_importing_compiling_and_running(whole):
  began = time.monotonic()
  found = _summary(whole)['wall']
  assert set(found) == {'import_seconds', 'compile_seconds', 'run_seconds'}
  assert all(value > 0 for value in found.values())
  # All of it was before this test, and after the package's import.
  assert sum(found.values()) < began - cbkd_jax.BEGAN
  phases = [_summary(whole)['teacher'], *_summary(whole)['stages']]
  # Every phase's first call is hardly more than compiling its step.
  assert found['compile_seconds'] > 0.5 * sum(
    figures['compile_seconds'] for figures in phases
  )
  console = tiny_run.console()
  summary.show_results(_summary(whole), console)
  assert (
    f'imports {found["import_seconds"]:,.1f} s, '
    f'compiling {found["compile_seconds"]:,.1f} s, '
    f'running {found["run_seconds"]:,.1f} s\n'
  ) in console.file.getvalue()


def test_a_stage_below_twice_chance_carries_a_warning(whole):
  for figures in _summary(whole)['stages']:
    expected = None
    if figures['accuracy'] < 0.2:
      expected = (
        f'{figures["name"]}: accuracy {figures["accuracy"]:.4f} is below twice '
        'chance, 0.2000'
      )
    assert figures['warning'] == expected


@pytest.mark.parametrize('accuracy', [0.1999, 0.2])
def test_the_warning_starts_at_twice_chance(
  whole, tmp_path, monkeypatch, accuracy
):
  shutil.copytree(whole, tmp_path / 'run')
  shutil.rmtree(tmp_path / 'run' / 'thaw')
  os.remove(tmp_path / 'run' / 'summary.json')
  monkeypatch.setattr(
    evaluation, 'scores', lambda *_: {'accuracy': accuracy, 'cross_entropy': 1}
  )
  console = tiny_run.console()
  thaw = tiny_run.run(tmp_path / 'run', console=console)['stages'][-1]
  text = 'thaw: accuracy 0.1999 is below twice chance, 0.2000'
  assert thaw['warning'] == (text if accuracy < 0.2 else None)
  assert (f'warning: {text}' in console.file.getvalue()) == (accuracy < 0.2)


def test_the_log_has_every_step_and_every_evaluation(whole):
  assert list(dict.fromkeys(line['stage'] for line in _lines(whole))) == PHASES
  for phase, steps in STEPS.items():
    *rows, evaluated = _lines(whole, phase)
    assert [row['step'] for row in rows] == list(range(1, steps + 1))
    assert [row['examples'] for row in rows] == [
      16 * s for s in range(1, steps + 1)
    ]
    # Cosine from the peak to 0.
    for s, row in enumerate(rows):
      rate = 0.05 * (1 + np.cos(np.pi * s / steps))
      np.testing.assert_allclose(row['learning_rate'], rate, 1e-4)
      if phase != 'teacher':
        total = 0.1 * row['ce'] + 0.9 * row['kd']
        np.testing.assert_allclose(row['loss'], total, rtol=1e-5)
    assert evaluated['step'] == steps
    figures = _summary(whole)['teacher']
    if phase != 'teacher':
      figures = _summary(whole)['stages'][PHASES.index(phase) - 1]
    assert evaluated['test_accuracy'] == figures['accuracy']
    assert evaluated['validation_accuracy'] == figures['validation_accuracy']
  assert _lines(whole, 'teacher')[39]['loss'] < 0.8 * _lines(whole)[0]['loss']


def test_the_student_loads_and_gives_the_reported_figures(whole):
  source = digits.open_split('test[:32]', 'test')
  logits = cbkd_jax.load_student(whole)(source.images)
  assert logits.shape == (32, 10)
  assert logits.dtype == np.float32
  found = evaluation.scores(np.asarray(logits, np.float64), source.labels)
  reported = _summary(whole)['student']
  assert found['accuracy'] == reported['accuracy']
  np.testing.assert_allclose(
    found['cross_entropy'], reported['cross_entropy'], rtol=1e-5
  )
  held_out = digits.open_split('train[96:128]', 'train')
  logits = cbkd_jax.load_student(whole)(held_out.images)
  accuracy = np.mean(np.argmax(logits, -1) == held_out.labels)
  assert accuracy == reported['validation_accuracy']


def test_a_checkpoint_holds_only_what_its_phase_trains(whole):
  for phase, parts in (
    ('stage_1', {'block_2', 'head'}),
    ('stage_2', {'block_1'}),
    ('thaw', {'block_0', 'block_1', 'block_2', 'head'}),
  ):
    _, arrays = _state(whole, phase)
    for kind in 'params', 'batch_stats':
      found = {n.split('/')[1] for n in arrays if n.startswith(f'{kind}/')}
      assert found == parts - ({'head'} if kind == 'batch_stats' else set())
    params = sum(a.size for n, a in arrays.items() if n.startswith('params/'))
    momentum = [a for n, a in arrays.items() if n.startswith('opt_state/')]
    assert sum(a.size for a in momentum if a.ndim) == params


def test_a_finished_run_says_so_and_changes_nothing(whole):
  before = _files(whole)
  console = tiny_run.console()
  found = tiny_run.run(whole, console=console)
  assert 'already finished' in console.file.getvalue()
  assert found == _summary(whole)
  ended = cli.call(
    'cbkd_jax.train', f'--config={HERE}/tiny_run.py', f'--workdir={whole}'
  )
  assert (ended.code, ended.err) == (0, '')
  assert 'already finished' in ended.out
  assert _files(whole) == before


@pytest.mark.thorough
def test_interrupted_over_and_over_is_the_same_run(whole, tmp_path):
  directory = tmp_path / 'run'
  stopped = []
  while len(stopped) < 20:
    phases = sum((directory / phase).exists() for phase in PHASES)
    try:
      # One call per phase, and then one per step.
      tiny_run.run(directory, interrupted=_After(phases + 9))
      break
    except Preempted as error:
      stopped.append(str(error))
    current = directory / [p for p in PHASES if (directory / p).exists()][-1]
    # A checkpoint that was being written when the power went.
    half = current / '36.orbax-checkpoint-tmp'
    half.mkdir()
    (half / 'state').write_text('half')
  assert stopped[0] == 'teacher: stopped at step 8 of 40, saved'
  assert {text.split(':')[0] for text in stopped} == set(PHASES)
  assert len(stopped) >= 6
  _assert_identical(directory, whole)
  for phase, steps in STEPS.items():
    assert os.listdir(directory / phase) == [str(steps)]


class _Killed(BaseException):
  """Ends the run where it stands, nothing being saved any more."""


@pytest.mark.parametrize(
  'where', ['evaluation', 'finish', 'student', 'summary', 'table']
)
def test_killed_after_the_last_step_is_the_same_run(
  whole, tmp_path, monkeypatch, where
):
  directory = tmp_path / 'run'
  shutil.copytree(whole, directory)
  os.remove(directory / 'summary.json')

  def kill(*args, **_):
    raise _Killed

  if where in ('evaluation', 'finish'):
    shutil.rmtree(directory / 'thaw')
  with monkeypatch.context() as patch:
    if where == 'evaluation':
      patch.setattr(phases, '_predict', kill)
    elif where == 'finish':
      patch.setattr(phases, 'finish', kill)
    elif where == 'student':
      patch.setattr(student.workdir, 'write_json', kill)
    elif where == 'summary':
      patch.setattr(training.summary, 'summarize', kill)
    else:
      patch.setattr(training.summary, 'show_results', kill)
    with pytest.raises(_Killed):
      tiny_run.run(directory)
  if where in ('evaluation', 'finish'):
    assert os.listdir(directory / 'thaw') == ['8']
  tiny_run.run(directory)
  _assert_identical(directory, whole)


def test_a_write_that_died_half_way_is_ignored_and_said(
  whole, tmp_path, monkeypatch
):
  directory = tmp_path / 'run'
  shutil.copytree(whole, directory)
  os.remove(directory / 'summary.json')
  shutil.rmtree(directory / 'thaw')
  half = directory / 'thaw' / '8.orbax-checkpoint-tmp'
  rename = os.rename

  def fail(source, target, **options):
    # The arrays are there, but not under their final name.
    if str(source).startswith(f'{half}/state'):
      raise OSError(28, 'No space left on device')
    rename(source, target, **options)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'rename', fail)
    with pytest.raises(OSError, match='No space left'):
      tiny_run.run(directory)
  assert sorted(os.listdir(directory / 'thaw')) == ['4', half.name]
  assert 'state.orbax-checkpoint-tmp' in os.listdir(half)

  console = tiny_run.console()
  with monkeypatch.context() as patch:
    # It goes on from step 4.
    patch.setattr(phases.step, 'create_train_state', None)
    tiny_run.run(directory, console=console)
  assert (
    f'thaw: ignored a half-written checkpoint (step 8): {half}\n'
  ) in console.file.getvalue()
  assert console.file.getvalue().count('half-written') == 1
  _assert_identical(directory, whole)
  assert os.listdir(directory / 'thaw') == ['12']


def test_a_finished_phase_is_read_and_nothing_else(
  whole, tmp_path, monkeypatch
):
  shutil.copytree(whole, tmp_path / 'run')
  os.remove(tmp_path / 'run' / 'summary.json')

  def needless(*args, **_):
    raise AssertionError('needless')

  for module, name in (
    (training.blocks, 'init'),
    (training.initialization, 'initialize_block'),
    (phases.step, 'create_train_state'),
    (training, 'fold'),
    (phases, '_predict'),
    (phases, 'fit'),
  ):
    monkeypatch.setattr(module, name, needless)
  tiny_run.run(tmp_path / 'run')
  _assert_identical(tmp_path / 'run', whole)


_SLOW = """
import runpy, sys, time
from cbkd_jax.data import sampler
indices = sampler.indices
def slow(*arguments):
  time.sleep(0.1)
  return indices(*arguments)
sampler.indices = slow
sys.argv[0] = 'train'
runpy.run_module('cbkd_jax.train', run_name='__main__')
"""


def _start(directory, environment):
  """A run in a process of its own, its steps slow enough to be hit."""
  return subprocess.Popen(
    [
      *(sys.executable, '-c', _SLOW),
      *(f'--config={HERE}/tiny_run.py', f'--workdir={directory}'),
    ],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    env={
      **os.environ,
      'PYTHONPATH': f'{HERE.parent}:{HERE}',
      **environment,
    },
  )


def _wait_for(path, process):
  end = time.monotonic() + 120
  while not path.exists():
    assert process.poll() is None, process.stderr.read()
    assert time.monotonic() < end, path
    time.sleep(0.01)


def test_sigterm_and_sigkill_and_on_is_the_same_run(
  whole, compilation, tmp_path, monkeypatch
):
  directory = tmp_path / 'run'
  indices = sampler.indices

  def signalled(seed, examples, batch, step, count):
    if step == 37:
      signal.raise_signal(signal.SIGTERM)
    return indices(seed, examples, batch, step, count)

  with monkeypatch.context() as patch:
    patch.setattr(sampler, 'indices', signalled)
    ended = cli.call(
      'cbkd_jax.train', f'--config={HERE}/tiny_run.py', f'--workdir={directory}'
    )
  assert ended.code == errors.EXIT_PREEMPTED == 75
  assert os.listdir(directory / 'teacher') == ['38']
  assert ended.err == (
    'error: teacher: stopped at step 38 of 40, saved; the same command goes '
    'on\n'
  )
  command = f'python -m cbkd_jax.train --config={HERE}/tiny_run.py --workdir='
  assert workdir.commands(directory) == f'{command}{directory}'
  with _start(directory, compilation) as process:
    _wait_for(directory / 'stage_1' / '4', process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
  assert not (directory / 'stage_2').exists()
  assert not (directory / 'summary.json').exists()
  assert workdir.commands(directory).count('\n') == 0  # the same once more
  tiny_run.run(directory)
  _assert_identical(directory, whole)


def test_a_run_in_use_is_refused(whole, tmp_path):
  shutil.copytree(whole, tmp_path / 'run')
  os.remove(tmp_path / 'run' / 'summary.json')
  before = _files(tmp_path / 'run')
  with (
    workdir.locked(tmp_path / 'run'),
    pytest.raises(UserError, match=f'in use by process {os.getpid()}'),
  ):
    tiny_run.run(tmp_path / 'run')
  del before['.lock']
  after = _files(tmp_path / 'run')
  del after['.lock']
  assert after == before


def test_a_loss_that_is_not_finite_stops_the_run(whole, tmp_path):
  """And another config goes on from what was finished before."""
  failed = tmp_path / 'failed'
  ended = cli.call(
    'cbkd_jax.train',
    f'--config={HERE}/tiny_run.py',
    f'--workdir={failed}',
    f'--from_workdir={whole}',
    '--from_stage=stage_1',
    '--config.checkpoint_every_steps=1',
    '--config.stage_overrides.stage_1.learning_rate=1e30',
    '--config.stage_overrides.stage_1.clip_norm=0.',
  )
  assert ended.code == errors.EXIT_NON_FINITE == 3
  # The classifier overflows in its product with the features.
  assert ended.err.startswith('error: stage_1, step 2: ce is ')
  assert ended.err.endswith('; the last checkpoint is kept\n')
  assert ended.err.count('\n') == 1
  # The state after step 1 gives no finite loss: it was not saved.
  assert os.listdir(failed / 'teacher') == ['40']
  assert os.listdir(failed / 'stage_1') == []
  assert not (failed / 'summary.json').exists()

  before = _files(failed)
  tiny_run.run(tmp_path / 'on', from_workdir=failed, from_stage='stage_1')
  _assert_identical(tmp_path / 'on', whole)
  assert _files(failed) == before


def test_a_term_that_turns_nan_later_keeps_the_last_good_state(
  whole, tmp_path, monkeypatch
):
  real = phases.fit.__globals__['step'].compiled_train

  def poisoned(spec, replicas):
    program = real(spec, replicas)

    def call(state, *args):
      at = int(state.step)
      state, metrics = program(state, *args)
      if at == 5:  # the sixth step
        metrics = {**metrics, 'kd': metrics['kd'] * np.float32('nan')}
      return state, metrics

    return types.SimpleNamespace(
      compile_seconds=0.0, compiled=lambda *args: call
    )

  directory = tmp_path / 'run'
  shutil.copytree(whole, directory)
  os.remove(directory / 'summary.json')
  shutil.rmtree(directory / 'thaw')
  with monkeypatch.context() as patch:
    patch.setattr(phases.fit.__globals__['step'], 'compiled_train', poisoned)
    with pytest.raises(NonFiniteLossError, match=r'^thaw, step 6: kd is nan'):
      tiny_run.run(directory)
  step, arrays = _state(directory, 'thaw')
  assert step == 4
  assert all(np.isfinite(array).all() for array in arrays.values())
  tiny_run.run(directory)
  _assert_identical(directory, whole)


def test_logits_that_are_not_finite_are_no_result(whole, tmp_path, monkeypatch):
  directory = tmp_path / 'run'
  shutil.copytree(whole, directory)
  os.remove(directory / 'summary.json')
  shutil.rmtree(directory / 'thaw')
  predict = phases._predict

  def broken(*args):
    found = predict(*args)
    logits, _ = found['validation']
    logits[3, 1] = np.inf
    return found

  monkeypatch.setattr(phases, '_predict', broken)
  with pytest.raises(NonFiniteLossError, match='thaw, step 12: logits of the'):
    tiny_run.run(directory)
  assert os.listdir(directory / 'thaw') == ['8']


@pytest.mark.parametrize('kind', ['workdir', 'orbax'])
def test_a_teacher_from_elsewhere(whole, tmp_path, kind):
  """The run is that of its own teacher, and stands on its own afterwards."""
  source, directory = tmp_path / 'source', tmp_path / 'run'
  if kind == 'workdir':
    shutil.copytree(whole / 'teacher', source / 'teacher')
  else:
    shutil.copytree(whole / 'teacher' / '40' / 'state', source)
  changes = {'teacher__checkpoint': str(source)}
  with pytest.raises(Preempted, match='stage_1: not begun'):
    tiny_run.run(directory, changes, interrupted=_After(1))
  shutil.rmtree(source)
  assert os.listdir(directory / 'teacher') == ['0']
  (line,) = _lines(directory)
  expected = _lines(whole, 'teacher')[-1]
  assert line == {**expected, 'step': 0}
  if kind == 'orbax':
    return
  found = tiny_run.run(directory, changes)
  assert found['teacher']['steps'] == 0
  assert found['teacher']['accuracy'] == _summary(whole)['teacher']['accuracy']
  assert found['stages'][-1]['loss'] == _summary(whole)['stages'][-1]['loss']
  ours = student.read(directory / 'student')[1]
  assert tiny.same(ours, student.read(whole / 'student')[1])


def test_a_teacher_of_other_images_is_refused(whole, tmp_path):
  """Its weights would fit: convolutions do, whatever the size."""
  changes = {
    'teacher__checkpoint': str(whole),
    'data__resize': 12,
    'data__image_shape': (12, 12, 1),
  }
  with pytest.raises(UserError) as caught:
    tiny_run.run(tmp_path / 'run', changes)
  assert str(caught.value) == (
    f"teacher.checkpoint = '{whole}': that run has data.image_shape = "
    '[8, 8, 1], but here it is [12, 12, 1]'
  )
  assert not (tmp_path / 'run').exists()


def test_a_teacher_in_training_is_refused(whole, tmp_path):
  source = tmp_path / 'source'
  with pytest.raises(Preempted, match='teacher: stopped at step'):
    tiny_run.run(source, interrupted=_After(12))
  with pytest.raises(UserError, match='source/teacher is not finished'):
    tiny_run.run(tmp_path / 'run', {'teacher__checkpoint': str(source)})
  assert not (tmp_path / 'run').exists()


def test_a_teacher_that_does_not_fit_is_named_with_both_shapes(whole, tmp_path):
  changes = {
    'teacher__checkpoint': str(whole),
    'teacher__model': 'tiny_run:wider',
  }
  with pytest.raises(UserError) as caught:
    tiny_run.run(tmp_path / 'run', changes)
  assert re.search(
    r'checkpoint .*/teacher/40/state does not fit: \w+/block_1/[\w/]+ has '
    r'shape \(6,\) there, but \(7,\) here$',
    str(caught.value),
  )
  assert not (tmp_path / 'run').exists()


def test_a_new_thaw_from_the_finished_stages_of_another_run(whole, tmp_path):
  directory = tmp_path / 'run'
  changes = {'thaw__steps': 3}
  before = _files(whole)
  with pytest.raises(Preempted, match='stopped at step 2 of 3'):
    tiny_run.run(
      directory,
      changes,
      interrupted=_After(6),
      from_workdir=whole,
      from_stage='3',
    )
  # Adopted, it needs the other run no more, whatever is said again.
  found = tiny_run.run(
    directory, changes, from_workdir=tmp_path / 'gone', from_stage='thaw'
  )
  assert _files(whole) == before
  old = _summary(whole)
  assert found['stages'][:2] == old['stages'][:2]  # with their times
  assert found['stages'][2]['steps'] == 3
  assert found['teacher'] == old['teacher']
  old_lines = [line for line in _lines(whole) if line['stage'] != 'thaw']
  new_lines = _lines(directory)
  assert new_lines[: len(old_lines)] == old_lines
  rest = [(r['stage'], r['step']) for r in new_lines[len(old_lines) :]]
  assert rest == [('thaw', 1), ('thaw', 2), ('thaw', 3), ('thaw', 3)]
  # Its first step starts from the same fold as the old one's.
  assert (
    _lines(directory, 'thaw')[0]['loss'] == _lines(whole, 'thaw')[0]['loss']
  )


def test_what_cannot_be_taken_over(whole, tmp_path):
  def refused(changes=None, source=whole, stage='thaw'):
    with pytest.raises(UserError) as caught:
      tiny_run.run(
        tmp_path / 'run', changes, from_workdir=source, from_stage=stage
      )
    assert not (tmp_path / 'run').exists()
    return str(caught.value)

  assert 'go together' in refused(stage=None)
  assert 'go together' in refused(source=None)
  for stage in '0', '4', 'stage_3':
    assert refused(stage=stage) == (
      f'--from_stage={stage}: must be one of stage_1, stage_2, thaw or a '
      'number from 1 to 3'
    )
  assert 'phase teacher is not finished' in refused(source=tmp_path / 'none')
  partly = tmp_path / 'partly'
  shutil.copytree(whole, partly)
  shutil.rmtree(partly / 'stage_2')
  assert 'phase stage_2 is not finished' in refused(source=partly)
  text = refused({'compression__keep': (1.0, 0.5, 0.25)})
  assert re.search(
    r'/stage_1/6/state does not fit: \w+/block_2/[\w/]+ has shape \(4,\) '
    r'there, but \(2,\) here$',
    text,
  )


@pytest.mark.parametrize('broken', ['state', 'progress', 'shape'])
def test_a_damaged_checkpoint_is_an_error_of_one_line(whole, tmp_path, broken):
  directory = tmp_path / 'run'
  shutil.copytree(whole, directory)
  os.remove(directory / 'summary.json')
  path = directory / 'stage_2' / '6'
  if broken == 'progress':
    (path / 'progress' / 'metadata').write_text('{"clock": ')
  elif broken == 'state':
    for file in (path / 'state').rglob('*'):
      if file.is_file():
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  else:
    shutil.rmtree(path / 'state')
    shutil.copytree(whole / 'stage_1' / '6' / 'state', path / 'state')
  ended = cli.call(
    'cbkd_jax.train', f'--config={HERE}/tiny_run.py', f'--workdir={directory}'
  )
  assert (ended.code, ended.err.count('\n')) == (2, 1)
  assert ended.err.startswith(f'error: checkpoint {path}')
  if broken == 'shape':
    assert 'it has no batch_stats/block_1/' in ended.err
  else:
    assert 'cannot be read' in ended.err


@pytest.mark.parametrize('order', ['joint', 'joint_inherited'])
def test_what_a_joint_student_starts_with(whole, tmp_path, order):
  directory = tmp_path / 'run'
  changes = {'teacher__checkpoint': str(whole), 'order': order}
  # After the teacher, and then before the first step.
  with pytest.raises(Preempted, match='stopped at step 0'):
    tiny_run.run(directory, changes, interrupted=_After(2))
  teacher, start = _state(whole, 'teacher')[1], _state(directory, order)[1]
  for name, array in start.items():
    if name.startswith('params/block_0/') and name.endswith('kernel'):
      same = np.array_equal(array, teacher[name])
      assert same == (order == 'joint_inherited')


TOTAL = sum(STEPS.values()) - STEPS['teacher']


@pytest.mark.thorough
@pytest.mark.parametrize('order', ['clockwise', 'joint'])
def test_the_controls_take_as_many_steps(whole, tmp_path, order):
  """One teacher for all; 'scratch' is below, compare_test has the other."""
  changes = {'teacher__checkpoint': str(whole), 'order': order}
  found = tiny_run.run(tmp_path / 'run', changes)
  assert sum(stage['steps'] for stage in found['stages']) == TOTAL
  names = [stage['name'] for stage in found['stages']]
  trained = [stage['trained_blocks'] for stage in found['stages']]
  if order == 'clockwise':
    assert names == PHASES[1:]
    assert trained == [[1], [2], [0, 1, 2]]
  else:
    assert names == [order]
    assert trained == [[0, 1, 2]]
  assert found['student']['params'] == _summary(whole)['student']['params']
  assert 'kd' in _lines(tmp_path / 'run', names[0])[0]


SHALLOW = {
  'teacher__model': 'tiny_run:shallow',
  'compression__keep': (1.0, 0.5),
}


@pytest.fixture(scope='module')
def shallow_teacher(tmp_path_factory):
  """A checkpoint, for runs whose numbers are compared with each other."""
  directory = tmp_path_factory.mktemp('shallow') / 'teacher'
  method_runs.write_teacher(directory, tiny_run.shallow)
  return str(directory)


def test_any_number_of_devices_is_the_same_run(
  compilation, shallow_teacher, tmp_path, monkeypatch
):
  """`scratch` alone: every program is to be compiled anew for each."""
  monkeypatch.setattr(replicas, '_LEAST_SHARDED', 1)
  changes = {
    **SHALLOW,
    'teacher__checkpoint': shallow_teacher,
    'order': 'scratch',
  }
  four = tiny_run.run(tmp_path / 'four', changes)
  (stage,) = four['stages']
  assert (stage['name'], stage['trained_blocks']) == ('scratch', [0, 1])
  assert stage['steps'] == STEPS['stage_1'] + STEPS['thaw']
  assert 'kd' not in _lines(tmp_path / 'four', 'scratch')[0]
  devices = jax.devices()
  # Over a mesh; begun on all devices, ended on two, with another mesh.
  mesh = {**changes, 'spmd': 'jit', 'mesh__model': 2}
  asked = iter(range(12))
  with pytest.raises(Preempted):
    tiny_run.run(tmp_path / 'mesh', mesh, lambda: next(asked, None) is None)
  monkeypatch.setattr(jax, 'devices', lambda: devices[:2])
  two = tiny_run.run(tmp_path / 'mesh', {**mesh, 'mesh__data': 1})
  monkeypatch.setattr(jax, 'devices', lambda: devices[:1])
  one = tiny_run.run(tmp_path / 'one', changes)
  assert [run['device']['count'] for run in (one, two, four)] == [1, 2, 4]
  for found, name in (one, 'one'), (two, 'mesh'):
    assert found['teacher']['accuracy'] == four['teacher']['accuracy']
    change = found['student']['accuracy'] - four['student']['accuracy']
    assert abs(change) <= 1 / 32
    ours, theirs = _lines(tmp_path / name), _lines(tmp_path / 'four')
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
      if 'loss' in mine:
        np.testing.assert_allclose(mine['loss'], other['loss'], rtol=1e-3)


@pytest.mark.thorough
def test_a_run_with_caches(compilation, shallow_teacher, tmp_path, monkeypatch):
  """Resumed it is the same run; where they don't fit, too, to rounding."""
  changes = {
    **SHALLOW,
    'teacher__checkpoint': shallow_teacher,
    'cache__prefix': True,
    'cache__thaw': True,
    'cache__views': 2,
    'cache__dtype': 'exact',
    # Three steps of a stage are a call of two and one of one.
    'steps_per_call': 2,
    'stage__steps': 3,
    'thaw__steps': 2,
    'checkpoint_every_steps': 1,
  }
  cached = tmp_path / 'cached'
  console = tiny_run.console()
  host = {**changes, 'cache__place': 'host'}
  found = tiny_run.run(cached, host, console=console)
  said = console.file.getvalue()
  assert said.count('cache of 2 views per image') == 2
  for stage, row in zip(found['stages'], (4 * 4 * 4, 0), strict=True):
    assert stage['cache']['bytes'] == 2 * 96 * 4 * (row + 10)
    assert stage['cache']['place'] == 'host'
    assert stage['cache']['error'] == 0
    # Of the steps alone.
    own = stage['seconds'] - stage['compile_seconds']
    own -= stage['cache']['seconds']
    assert stage['examples_per_second'] == pytest.approx(
      stage['steps'] * 16 / own
    )

  resumed, stopped = tmp_path / 'resumed', []
  # In a cache's filling, which takes 16 calls, and in the steps after it.
  for calls in 4, 19, 36, 1000:
    try:
      tiny_run.run(resumed, host, interrupted=_After(calls))
    except Preempted as error:
      stopped.append(str(error))
    if calls == 19:
      # A phase goes on as it was begun, or says that it can't.
      with monkeypatch.context() as patch:
        memory = phases.placement.devices
        patch.setattr(memory, 'free_host_bytes', lambda: 1000)
        with pytest.raises(UserError, match='stage_1 was begun with a cache'):
          tiny_run.run(resumed, host)
  assert stopped[0].endswith('while the cache was filled; nothing is lost')
  assert stopped[1:] == [
    'stage_1: stopped at step 2 of 3, saved',
    'thaw: stopped at step 0 of 2, saved',
  ]
  ours = (resumed / 'metrics.jsonl').read_bytes()
  assert ours == (cached / 'metrics.jsonl').read_bytes()

  without = tmp_path / 'without'
  console = tiny_run.console()
  nowhere = {'cache__limit_mib': 0.001, 'steps_per_call': 1}
  tiny_run.run(without, {**changes, **nowhere}, console=console)
  assert console.file.getvalue().count('no cache, it takes') == 2
  for ours, theirs in zip(_lines(without), _lines(cached), strict=True):
    assert ours.pop('stage') == theirs.pop('stage')
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)
