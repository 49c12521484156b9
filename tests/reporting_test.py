"""A run's record, and teacher and student side by side, of a tiny run."""

import json
import shutil

import numpy as np
import pytest
import tiny_run

from cbkd_jax import config, data, finished_run, workdir
from cbkd_jax.data import Split
from cbkd_jax.errors import Preempted, UserError
from cbkd_jax.reporting import analysis, block_costs, record

CHANGES = {
  'teacher__model': 'tiny_run:shallow',
  'compression__keep': (1.0, 0.5),
  'teacher__steps': 20,
  'stage__steps': 2,
  'thaw__steps': 2,
  'order': 'joint_inherited',  # one stage to compile instead of three
}
COMMAND = "python -m cbkd_jax.train --config='a b.py'"


@pytest.fixture(scope='module')
def run(tmp_path_factory, quick_compilation):
  """A finished run, and a copy from when it had been interrupted."""
  home = tmp_path_factory.mktemp('reporting')
  steps = iter(range(10_000))
  with pytest.raises(Preempted, match='joint_inherited: stopped at step 2'):
    tiny_run.run(
      home / 'run', CHANGES, lambda: next(steps) > 23, command=COMMAND
    )
  shutil.copytree(home / 'run', home / 'unfinished')
  summary = tiny_run.run(home / 'run', CHANGES, command=f'{COMMAND} --again')
  return home / 'run', home / 'unfinished', summary


@pytest.fixture(scope='module')
def analysed(run):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(block_costs, '_RUNS', (3, 3))
    return analysis.analyse(record.read(run[0]), batch_size=40)


def test_the_record_of_a_finished_run(run):
  directory, _, summary = run
  found = record.read(directory)
  assert (found.name, found.finished) == ('run', True)
  assert found.summary == json.loads((directory / 'summary.json').read_text())
  assert found.versions == summary['versions']
  assert found.command == f'{COMMAND}\n{COMMAND} --again'
  assert workdir.flat(found.config) == workdir.flat(tiny_run.values(**CHANGES))
  assert found.done == ('teacher', 'joint_inherited')
  assert found.phases[0]['accuracy'] == summary['teacher']['accuracy']
  assert found.phases[1]['agreement'] == summary['student']['agreement']


def test_the_metrics_are_what_the_docstring_says(run):
  found = record.read(run[0])
  assert len(found.metrics) == 20 + 1 + 4 + 1
  row = found.metrics[21]
  assert (row['stage'], row['step']) == ('joint_inherited', 1)
  assert row['loss'] == pytest.approx(0.1 * row['ce'] + 0.9 * row['kd'])
  assert set(row) == {
    *('stage', 'step', 'examples', 'accuracy', 'loss', 'ce', 'kd'),
    *('grad_norm', 'learning_rate'),
  }
  last, scores = found.metrics[-1], found.summary['student']
  for name in 'accuracy', 'cross_entropy', 'agreement', 'kl_to_teacher':
    assert last[f'test_{name}'] == scores[name]
  assert 'validation_accuracy' in last


def test_the_record_of_a_run_that_is_not_finished(run, tmp_path):
  directory = tmp_path / 'run'
  shutil.copytree(run[1], directory)
  whole = record.read(run[0])
  found = record.read(directory)
  assert (found.finished, found.summary, found.versions) == (False, None, None)
  assert found.done == ('teacher',)
  for key in 'accuracy', 'cross_entropy', 'steps':
    assert found.phases[0][key] == whole.summary['teacher'][key]
  assert found.metrics == whole.metrics[: len(found.metrics)]
  assert found.metrics[-1]['stage'] == 'joint_inherited'
  assert found.command == COMMAND

  log = directory / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  log.write_text(''.join([*lines, '{"stage": "joint_inh']))
  assert record.read(directory).metrics == found.metrics
  # A run that took over a teacher has the other run's whole log at first.
  log.write_text(''.join([*lines, '{"stage": "stage_1", "step": 1}\n']))
  assert record.read(directory).metrics == found.metrics
  log.write_text(''.join([lines[0][:20], '\n', *lines]))
  with pytest.raises(UserError, match='is damaged in line 1'):
    record.read(directory)
  log.unlink()
  (directory / 'command.txt').unlink()
  found = record.read(directory)
  assert (list(found.metrics), found.command) == ([], None)
  assert found.done == ('teacher',)


def test_the_names_of_several_runs(tmp_path):
  def begin(*names):
    for name in names:
      (tmp_path / name).mkdir(parents=True)
      (tmp_path / name / 'config.json').write_text('{"seed": 7}')

  def names(*directories):
    found = record.read_all([tmp_path / name for name in directories])
    return [one.name for one in found]

  begin('a/run', 'b/run', 'one/seed_0/joint', 'one/seed_0/kd/scratch')
  begin('many/seed_10/params_0.1', 'many/seed_9/params_0.1')
  assert names('a/run') == ['run']
  assert names('a/run', 'b/run') == ['a/run', 'b/run']
  assert names('one') == ['joint', 'kd/scratch']
  assert names('many') == ['seed_9/params_0.1', 'seed_10/params_0.1']
  found = record.read(tmp_path / 'a' / 'run')
  assert found.config == {**config.defaults(), 'seed': 7}
  assert (found.done, found.finished) == ((), False)
  with pytest.raises(UserError, match='run is named twice'):
    names('a/run', 'a/run')
  with pytest.raises(UserError, match=r'a: holds no run; must be a workdir'):
    names('a')
  with pytest.raises(UserError, match='nowhere: holds no run'):
    record.read(tmp_path / 'nowhere')


def test_phases_in_the_order_in_which_they_are_run():
  names = ['teacher', 'stage_1_pre', 'stage_1', 'stage_9', 'stage_10', 'thaw']
  assert sorted(sorted(names), key=record._place) == names
  assert record._place('joint_pre') < record._place('joint')


def test_predictions_are_those_of_the_summary(run, analysed):
  _, _, summary = run
  dataset = data.load(data.Wanted.of(tiny_run.values(**CHANGES)['data']))
  np.testing.assert_array_equal(analysed.labels, dataset.test.labels)
  for name in 'teacher', 'student':
    predicted = getattr(analysed, f'{name}_predictions')
    accuracy = np.mean(predicted == analysed.labels)
    assert accuracy == summary[name]['accuracy']
  assert analysed.agreement == summary['student']['agreement']
  assert analysed.class_names == dataset.class_names
  matrix = np.zeros((10, 10), int)
  for label, said in zip(analysed.labels, analysed.student_predictions):
    matrix[label, said] += 1
  np.testing.assert_array_equal(analysed.confusion, matrix)
  assert (
    analysed.teacher_confusion.trace() / 32 == (summary['teacher']['accuracy'])
  )


def test_the_worst_classes_images_are_the_data_sets(analysed):
  dataset = data.load(data.Wanted.of(tiny_run.values(**CHANGES)['data']))
  assert analysed.worst
  for found in analysed.worst:
    own = dataset.test.images[dataset.test.labels == found.label]
    assert found.examples == len(own)
    for image, said in zip(found.images, found.predicted, strict=True):
      assert any(np.array_equal(image, other) for other in own)
      assert said != found.name


def test_cuts_and_costs_of_every_block(run, analysed):
  _, _, summary = run
  assert [name for name, _ in analysed.cka] == ['block 0', 'block 1', 'pooled']
  assert all(-0.2 < value <= 1 for _, value in analysed.cka)
  assert analysed.cka_examples == 32
  assert [b.name for b in analysed.blocks] == ['block 0', 'block 1', 'head']
  for name in 'teacher', 'student':
    costs = [getattr(block, name) for block in analysed.blocks]
    assert sum(c.params for c in costs) == summary[name]['params']
    flops = sum(c.flops for c in costs)
    assert flops == summary[name]['flops_per_example']
    assert all(0 < c.milliseconds < 1e4 for c in costs)
  # Weights and a bias, 4x4 or pooled features in, logits out, 40 images.
  head = analysed.blocks[-1].teacher
  least = 4 * (head.params + 40 * (2 * 2 * 8 + 10))
  assert least <= head.memory_bytes <= 2 * least


def test_the_worst_classes_by_hand():
  labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3])
  teacher = np.array([0, 0, 0, 1, 1, 1, 2, 0, 0])
  student = np.array([1, 2, 0, 0, 0, 2, 0, 2, 3])
  # The logit of what is said, over the others' 0.
  certain = np.array([1.0, 3.0, 1.0, 1.0, 2.0, 1.5, 1.0, 1.0, 1.0])
  logits = {
    'teacher': np.eye(5)[teacher],
    'student': np.eye(5)[student] * certain[:, None],
  }
  images = np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1)
  split, names = Split(images, labels), tuple('abcde')
  found = analysis.worst(logits, labels, names, split)
  # Class 1 loses all, 0 loses 3/4 - 2/4, 2 keeps 1/2, 3 gains, 4 is absent.
  assert [(w.label, w.name, w.examples) for w in found] == [
    (1, 'b', 2),
    (0, 'a', 4),
  ]
  assert [w.teacher_accuracy for w in found] == [1, 0.75]
  assert [w.student_accuracy for w in found] == [0, 0.5]
  assert [w.images.ravel().tolist() for w in found] == [[4, 5], [1, 0]]
  assert [w.predicted for w in found] == [('a', 'c'), ('c', 'b')]
  compared = analysis.compare(logits, labels, names)
  assert compared['agreement'] == 1 / 9
  accuracies = compared['student_class_accuracy']
  np.testing.assert_array_equal(accuracies, [0.5, 0, 0.5, 1, np.nan])
  some = analysis.Some.of(split, 4)
  assert len(some) == 4
  assert np.all(np.diff(some.chosen) > 0)
  ((chosen, own),) = some.batches([np.array([3, 0])])
  np.testing.assert_array_equal(chosen.ravel(), some.chosen[[3, 0]])
  np.testing.assert_array_equal(own, labels[some.chosen[[3, 0]]])


def test_at_most_six_classes_and_six_images():
  labels = np.repeat(np.arange(8), 8)
  logits = {'teacher': np.eye(9)[labels], 'student': np.eye(9)[labels * 0 + 8]}
  split = Split(np.zeros((64, 1, 1, 1), np.uint8), labels)
  found = analysis.worst(logits, labels, tuple('abcdefghi'), split)
  assert [w.label for w in found] == [0, 1, 2, 3, 4, 5]
  assert [len(w.images) for w in found] == [6] * 6


@pytest.mark.parametrize('missing', ['student', 'teacher', 'data'])
def test_what_can_not_be_analysed_is_one_line(run, tmp_path, missing):
  directory = tmp_path / 'run'
  shutil.copytree(run[1] if missing == 'student' else run[0], directory)
  message = 'holds no finished student'
  if missing == 'teacher':
    shutil.rmtree(directory / 'teacher')
    message = 'neither a workdir with a teacher'
  if missing == 'data':
    path = directory / 'config.json'
    fields = json.loads(path.read_text())
    fields['data'] |= {'name': 'cifar10', 'dir': str(tmp_path)}
    path.write_text(json.dumps(fields))
    message = 'cifar10'
  with pytest.raises(UserError, match=message) as caught:
    analysis.analyse(record.read(directory))
  assert '\n' not in str(caught.value)


def test_streamed_images_are_the_resident_ones(run):
  values = tiny_run.values(**CHANGES, data__pipeline='stream')
  loaded = finished_run.load(run[0])
  wanted = data.Wanted.of(values['data'])
  streamed = data.stream(wanted).test
  logits = {
    'teacher': np.eye(10)[loaded.dataset.test.labels],
    'student': np.eye(10)[np.zeros(32, int)],
  }
  ours, theirs = (
    analysis.worst(logits, loaded.dataset.test.labels, '0123456789', split)
    for split in (loaded.dataset.test, streamed)
  )
  for one, two in zip(ours, theirs, strict=True):
    np.testing.assert_array_equal(one.images, two.images)
