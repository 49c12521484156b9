"""Whole runs whose images are read from disk, beside resident ones."""

import functools
import itertools
import json
import platform

import method_runs
import pytest
import tiny_run

from cbkd_jax import feed, finished_run
from cbkd_jax.errors import Preempted

# Unoptimised, the two programs round differently where products and sums are
# merged; conftest.py lets nobody do so on x86.
pytestmark = pytest.mark.usefixtures(
  *(['quick_compilation'] if platform.machine() == 'x86_64' else []),
  'uniform_shares',
)

MOMENTS = {'data__mean': (0.3,), 'data__std': (0.35,)}
RESIDENT = {
  **MOMENTS,
  'data__pad': 1,
  'data__alternating_flip': True,
  'data__mixup': 1.0,
  'order': 'joint_inherited',
  'teacher__model': 'tiny_run:shallow',
  'compression__keep': (1.0, 0.5),
  'stage__steps': 14,
  'thaw__steps': 7,
}
STREAM = {**RESIDENT, 'data__pipeline': 'stream'}


def metrics(directory):
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


@pytest.fixture(scope='module')
def runs(tmp_path_factory, uniform_shares):
  """Their directory, and the summaries of a resident and a streamed run."""
  home = tmp_path_factory.mktemp('runs')
  method_runs.write_teacher(home / 'teacher', tiny_run.shallow)
  teacher = {'teacher__checkpoint': str(home / 'teacher')}
  return home, *(
    tiny_run.run(home / name, changes | teacher)
    for name, changes in (('resident', RESIDENT), ('stream', STREAM))
  )


def test_a_streamed_run_is_the_resident_one(runs):
  home, one, two = runs
  rows = metrics(home / 'stream')
  assert rows == metrics(home / 'resident')
  # 21 steps of 16 are more than three epochs of 96.
  assert len({row['loss'] for row in rows if 'loss' in row}) > 20
  assert two['student'] == one['student']
  assert two['dataset'] == one['dataset']
  found = finished_run.evaluate(home / 'stream')
  assert found['student']['accuracy'] == two['student']['accuracy']


@pytest.mark.thorough
def test_a_streamed_run_goes_on_where_it_was_stopped(
  runs, tmp_path, monkeypatch
):
  home, _, whole = runs
  changes = STREAM | {'teacher__checkpoint': str(home / 'teacher')}
  # In the first epoch and in the second; each session asks before each phase
  # and before each step.
  for calls in 6, 7:
    answers = itertools.chain([False] * calls, itertools.repeat(True))
    with pytest.raises(Preempted, match=r'stopped at step [1-9]'):
      tiny_run.run(
        tmp_path / 'run', changes, interrupted=functools.partial(next, answers)
      )
  # Whatever the wait, it is told of.
  monkeypatch.setattr(feed, '_MUCH', -1)
  console = tiny_run.console()
  found = tiny_run.run(tmp_path / 'run', changes, console=console)
  assert metrics(tmp_path / 'run') == metrics(home / 'stream')
  assert found['student'] == whole['student']
  said = console.file.getvalue()
  assert said.count('the input is the limit') == 1
  assert 'joint_inherited: waited for images ' in said
