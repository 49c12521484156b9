"""The launchers, with stand-ins for what they call."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import method_runs
import pytest
import tiny_run
import yaml

ROOT = Path(__file__).resolve().parent.parent
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), LAUNCH / 'slurm.sbatch'])
TRAIN = 'python -m cbkd_jax.train'
ARGUMENTS = ['--config=configs/digits.py', "--config.objective='ce + kd'"]

# Stands for `python`: notes how it was called, then does what ENDS says for
# its process: a number is its exit code, 'wait' waits for SIGTERM and ends
# with 75, 'deaf' does not end.
FAKE = f"""#!{sys.executable} -SI
import json, os, pathlib, signal, sys, time
if sys.argv[1] != '-m':
  os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
number = int(sys.argv[-1].removeprefix('--process_id='))
end = os.environ['ENDS'].split(',')[number]
signal.signal(signal.SIGTERM, lambda *_: end == 'wait' and sys.exit(75))
print(f'out {{number}}', flush=True)
names = 'CUDA_VISIBLE_DEVICES', 'XLA_FLAGS', 'PYTHONPATH'
found = dict(pid=os.getpid(), argv=sys.argv[1:])
found['env'] = {{name: os.environ[name] for name in names}}
note = pathlib.Path(os.environ['NOTES'], f'{{number}}.new')
note.write_text(json.dumps(found))
note.rename(note.with_suffix('.json'))
while not end.isdecimal():
  time.sleep(0.01)
sys.exit(int(end))
"""


def _stand_in(directory, name, text):
  directory.mkdir(exist_ok=True)
  (directory / name).write_text(text)
  (directory / name).chmod(0o755)


def _environment(directory, **more):
  path = f'{directory}:{os.environ["PATH"]}'
  return {**os.environ, 'PATH': path, **more}


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_short_strict_and_says_its_call(script):
  lines = script.read_text().splitlines()
  assert len(lines) < 40
  assert lines[0] == '#!/usr/bin/env bash'
  # sbatch reads its options up to the first command.
  commands = [line for line in lines[1:] if not line.startswith('#SBATCH')]
  assert commands[0] == 'set -euo pipefail'
  assert any(re.match(f'#  .*launch/{script.name}', line) for line in lines)
  assert any('cbkd_jax.train' in line for line in lines)
  assert max(map(len, lines)) <= 80


def test_the_scripts_pass_shellcheck():
  command = [Path(sys.executable).parent / 'shellcheck', *SCRIPTS]
  ended = subprocess.run(command, capture_output=True, text=True)
  assert ended.stdout + ended.stderr == ''
  assert ended.returncode == 0


def test_local(tmp_path):
  _stand_in(tmp_path, 'python', '#!/bin/bash\nprintf "%s\\n" "$@"')
  ended = subprocess.run(
    [LAUNCH / 'local.sh', *ARGUMENTS],
    capture_output=True,
    text=True,
    check=True,
    env=_environment(tmp_path),
  )
  assert ended.stdout.splitlines() == ['-m', 'cbkd_jax.train', *ARGUMENTS]


@contextlib.contextmanager
def _processes(directory, ends, grace=60):
  """The running launcher; its processes are gone in the end."""
  _stand_in(directory, 'python', FAKE)
  more = {'ENDS': ends, 'NOTES': str(directory), 'GRACE': str(grace)}
  count = len(ends.split(','))
  with subprocess.Popen(
    [LAUNCH / 'multiprocess.sh', str(count), *ARGUMENTS],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=directory,
    env=_environment(directory, **more),
  ) as process:
    try:
      yield process
    finally:
      process.kill()
      for note in _notes(directory):
        with contextlib.suppress(ProcessLookupError):
          os.kill(note['pid'], signal.SIGKILL)


def _notes(directory):
  return [
    json.loads(path.read_text()) for path in sorted(directory.glob('*.json'))
  ]


def _wait_for(directory, count):
  until = time.monotonic() + 30
  while len(found := _notes(directory)) < count:
    assert time.monotonic() < until
    time.sleep(0.01)
  return found


def _alive(note):
  try:
    os.kill(note['pid'], 0)
  except ProcessLookupError:
    return False
  return True


@pytest.mark.parametrize(
  ('ends', 'code'),
  [('0', 0), ('0,0,0', 0), ('0,2', 2), ('75,75', 75), ('0,0,75', 75)],
)
def test_the_first_code_that_is_not_0(ends, code, tmp_path):
  with _processes(tmp_path, ends) as process:
    out, err = process.communicate(timeout=30)
  assert process.returncode == code
  assert out == 'out 0\n'
  others = range(1, len(ends.split(',')))
  assert sorted(err.splitlines()) == [f'out {i}' for i in others]


def test_each_process_is_told_its_place(tmp_path):
  with _processes(tmp_path, '0,0,0') as process:
    process.communicate(timeout=30)
  places = set()
  for i, note in enumerate(_notes(tmp_path)):
    *called, place, count, number = note['argv']
    assert called == ['-m', 'cbkd_jax.train', *ARGUMENTS]
    assert (count, number) == ('--processes=3', f'--process_id={i}')
    places.add(place)
    env = note['env']
    assert env['CUDA_VISIBLE_DEVICES'] == str(i)
    assert env['XLA_FLAGS'].split()[-1].endswith('device_count=1')
    assert env['PYTHONPATH'].split(':')[0] == str(ROOT)
  (place,) = places
  port = int(place.removeprefix('--coordinator=localhost:'))
  assert 1024 <= port < 65536


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all(number, tmp_path):
  with _processes(tmp_path, 'wait,wait') as process:
    notes = _wait_for(tmp_path, 2)
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert not any(map(_alive, notes))


@pytest.mark.parametrize('end', ['1', '75'])
def test_who_waits_for_one_that_is_gone_is_ended(end, tmp_path):
  with _processes(tmp_path, f'deaf,{end},deaf', grace=1) as process:
    notes = _wait_for(tmp_path, 3)
    process.communicate(timeout=30)
    assert process.returncode == int(end)
    # Init, which is not always quick, has yet to collect them.
    until = time.monotonic() + 10
    while any(map(_alive, notes)) and time.monotonic() < until:
      time.sleep(0.01)
    assert not any(map(_alive, notes))


@pytest.mark.parametrize('arguments', [[], ['0'], ['--config=x'], ['2x']])
def test_without_a_number_of_processes(arguments):
  ended = subprocess.run(
    [LAUNCH / 'multiprocess.sh', *arguments], capture_output=True, text=True
  )
  assert ended.returncode == 2
  assert ended.stderr.startswith('usage: ')
  assert ended.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('order', 'phases'),
  [
    ('joint_inherited', 1),
    pytest.param('counterclockwise', 2, marks=pytest.mark.thorough),
  ],
)
def test_two_processes_are_one_run(
  order, phases, tmp_path, monkeypatch, quick_compilation
):
  """From the teacher's checkpoint to the student, to rounding."""
  method_runs.write_teacher(tmp_path / 'teacher', tiny_run.shallow)
  fields = {
    'teacher.model': 'tiny_run:shallow',
    'teacher.checkpoint': str(tmp_path / 'teacher'),
    'compression.keep': (1.0, 0.5),
    'order': order,
    'stage.steps': 3,
    'thaw.steps': 3,
  }
  ended = subprocess.run(
    [
      *(LAUNCH / 'multiprocess.sh', '2', f'--config={tiny_run.__file__}'),
      f'--workdir={tmp_path / "two"}',
      *(f'--config.{name}={value}' for name, value in fields.items()),
    ],
    capture_output=True,
    text=True,
    timeout=240,
    cwd=ROOT,
    env=_environment(
      Path(sys.executable).parent,
      PYTHONPATH=str(Path(__file__).parent),
      JAX_DISABLE_MOST_OPTIMIZATIONS='true',
      JAX_DEFAULT_MATMUL_PRECISION='highest',
    ),
  )
  assert ended.returncode == 0, ended.stderr
  devices = jax.devices()[:2]
  monkeypatch.setattr(jax, 'devices', lambda: devices)
  changes = {name.replace('.', '__'): value for name, value in fields.items()}
  expected = tiny_run.run(tmp_path / 'one', changes)
  found = json.loads((tmp_path / 'two' / 'summary.json').read_text())
  assert found['device'] == {'kind': 'cpu', 'count': 2, 'processes': 2}
  assert expected['device'] == {'kind': 'cpu', 'count': 2, 'processes': 1}
  for name in 'accuracy', 'agreement', 'validation_accuracy':
    assert found['student'][name] == expected['student'][name]
  one, two = (
    [json.loads(line) for line in (tmp_path / name / 'metrics.jsonl').open()]
    for name in ('one', 'two')
  )
  assert len(one) == len(two) == 1 + 6 + phases
  for ours, theirs in zip(one, two):
    assert ours.pop('stage') == theirs.pop('stage')
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize('code', [0, 2, 75])
def test_slurm_queues_again_what_was_preempted(code, tmp_path):
  calls = tmp_path / 'calls'
  for name, end in ('srun', code), ('scontrol', 0):
    text = f'#!/bin/bash\necho {name} "$@" >>{calls}\nexit {end}'
    _stand_in(tmp_path / 'bin', name, text)
  slurm = {'SLURM_JOB_ID': '7', 'SLURM_SUBMIT_DIR': str(ROOT)}
  ended = subprocess.run(
    ['bash', LAUNCH / 'slurm.sbatch', *ARGUMENTS],
    env=_environment(tmp_path / 'bin', **slurm),
  )
  assert ended.returncode == code
  step, *after = calls.read_text().splitlines()
  assert step.endswith(' '.join([TRAIN, *ARGUMENTS]))
  assert after == (['scontrol requeue 7'] if code == 75 else [])


def test_slurm_sends_the_signal_to_the_processes():
  options = re.findall(
    '^#SBATCH (.*)$', (LAUNCH / 'slurm.sbatch').read_text(), 8
  )
  assert '--requeue' in options
  # 'B:' would send it to the script, and srun kills what it is asked to end.
  assert any(re.fullmatch(r'--signal=TERM@\d+', option) for option in options)


def test_a_tpu_pod_runs_the_command_on_all_hosts(tmp_path):
  calls = tmp_path / 'calls'
  _stand_in(
    tmp_path / 'bin',
    'gcloud',
    f'#!/bin/bash\nprintf "%s\\0" "$@" >>{calls}\nprintf "\\n" >>{calls}\n'
    '[[ $4 != scp ]] || tar -tzf "$5" | head -3',
  )
  arguments = [*ARGUMENTS, '--workdir=gs://bucket/run']

  def run(arguments, **more):
    return subprocess.run(
      [LAUNCH / 'tpu_pod.sh', *arguments],
      capture_output=True,
      text=True,
      env=_environment(tmp_path / 'bin', **more),
    )

  ended = run(arguments, TPU='pod', ZONE='here')
  assert ended.returncode == 0, ended.stderr
  copy, start = calls.read_text().rstrip('\0\n').split('\0\n')
  for call, verb in (copy, 'scp'), (start, 'ssh'):
    parts = call.split('\0')
    assert parts[:4] == ['compute', 'tpus', 'tpu-vm', verb]
    assert {'--zone=here', '--worker=all'} <= {*parts}
  last = start.split('\0')[-1].splitlines()[-1]
  *_, module = shlex.split(last)[: -len(arguments)]
  assert module == 'cbkd_jax.train'
  assert shlex.split(last)[-len(arguments) :] == arguments

  ended = run(ARGUMENTS, TPU='pod', ZONE='here')
  assert ended.returncode == 2
  assert '--workdir=gs://' in ended.stderr
  assert 'TPU' in run(arguments, ZONE='here').stderr


def test_the_jobset():
  found = yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())
  assert found['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert found['kind'] == 'JobSet'
  assert found['spec']['network']['enableDNSHostnames']
  (rule,) = found['spec']['failurePolicy']['rules']
  assert rule['action'] == 'RestartJobSetAndIgnoreMaxRestarts'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  (group,) = found['spec']['replicatedJobs']
  job = group['template']['spec']
  assert job['parallelism'] == job['completions']
  assert job['backoffLimit'] == 0
  (rule,) = job['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [75]
  pod = job['template']['spec']
  assert pod['restartPolicy'] == 'Never'  # as podFailurePolicy demands
  (container,) = pod['containers']
  assert rule['onExitCodes']['containerName'] == container['name']
  chips = container['resources']['limits']['google.com/tpu']
  assert container['resources']['requests']['google.com/tpu'] == chips
  selector = pod['nodeSelector']
  sides = selector['cloud.google.com/gke-tpu-topology'].split('x')
  assert int(sides[0]) * int(sides[1]) == chips * job['parallelism']
  assert any(a.startswith('--workdir=gs://') for a in container['args'])


def test_the_image():
  """Not built here: its sources exist, and it does not run as root."""
  lines = (LAUNCH / 'Dockerfile').read_text().splitlines()
  steps = [line.split() for line in lines if line[:1].isupper()]
  sources = [step[1] for step in steps if step[0] == 'COPY']
  assert all((ROOT / source).exists() for source in sources)
  ignored = (ROOT / '.dockerignore').read_text().splitlines()
  assert ignored[0] == '*'
  assert {f'!{source}' for source in sources} <= {*ignored}
  # Whoever changes the code does not install the libraries again.
  order = [step[0] for step in steps]
  assert sources[0] == 'requirements.txt'
  assert order.index('RUN') < order.index('COPY', order.index('COPY') + 1)
  assert 'USER' in order
  assert steps[-1][0] == 'ENTRYPOINT'
  assert json.loads(lines[-1].partition(' ')[2]) == TRAIN.split()
