"""Checkpoints of arrays that are spread over devices, and over processes."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import checkpoint_process as job
import jax
import pytest
import tiny

from cbkd_jax import checkpoints

HERE = Path(__file__).parent


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A phase's directory, saved from a mesh of 2 x 2 devices."""
  directory = tmp_path_factory.mktemp('saved') / 'stage_1'
  job.save(directory, 3, job.plan(job.mesh(2, 2)))
  return directory


@pytest.mark.parametrize('shape', [(2, 2), (2, 1), (1, 2), (1, 4), (1, 1)])
def test_what_was_sharded_comes_back_on_any_mesh(saved, shape):
  job.check(saved, 3, job.plan(job.mesh(*shape)))


def test_what_was_sharded_comes_back_as_numpy(saved):
  bare = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), job.values(3)
  )
  job.check(saved, 3, bare)


def test_what_was_whole_comes_back_sharded(tmp_path):
  job.save(tmp_path, 3, job.plan(job.mesh(1, 1)))
  job.check(tmp_path, 3, job.plan(job.mesh(2, 2)))


def test_a_copy_is_spread_as_the_array_is():
  state = job.put(job.values(3), job.plan(job.mesh(2, 2)))
  tree = checkpoints.snapshot(state, job.TRAINED)
  kernel = tree['params']['block_0']['kernel']
  assert kernel.sharding == state.params[0]['kernel'].sharding
  # What all devices of the process hold is written once, without slicing.
  assert len(tree['params']['head']['kernel'].sharding.device_set) == 1


@pytest.fixture
def processes(tmp_path):
  """Two processes of one device each, ended by force: JAX takes SIGTERM."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  started = [
    subprocess.Popen(
      [
        *(sys.executable, HERE / 'checkpoint_process.py'),
        *(str(rank), '2', str(port), tmp_path / 'stage_1'),
      ],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={
        **os.environ,
        'PYTHONPATH': f'{HERE.parent}:{HERE}',
        'XLA_FLAGS': '--xla_force_host_platform_device_count=1',
        'JAX_PLATFORMS': 'cpu',
      },
    )
    for rank in range(2)
  ]

  def end():
    for process in started:
      process.kill()

  timer = threading.Timer(60, end)
  timer.start()
  yield started
  timer.cancel()
  end()
  for process in started:
    process.communicate()


@pytest.mark.thorough
def test_two_processes_one_and_two_again(processes, tmp_path):
  """Each goes on with what the others have saved."""
  directory = tmp_path / 'stage_1'
  for process in processes:
    # Gloo writes lines of its own.
    said = iter(process.stdout.readline, '')
    assert 'saved\n' in said, process.stderr.read()[-2000:]
  # Both have written: what they held.
  written = {p.name for p in (directory / '3' / 'state').glob('ocdbt.*')}
  assert written == {'ocdbt.process_0', 'ocdbt.process_1'}
  own = job.plan(job.mesh(2, 2))
  job.check(directory, 3, own)
  job.save(directory, 4, own)
  (tmp_path / 'go').touch()
  for process in processes:
    out, err = process.communicate()
    assert process.returncode == 0, err[-2000:]
    assert out.endswith('done\n')
  job.check(directory, 5, own)
  assert os.listdir(directory) == ['5']
  expected = job.values(5).variables
  found = checkpoints.read_variables(tmp_path / 'student', expected)
  assert tiny.same(found, expected)
