"""A thaw that trains as if in int8: its step, its figures, its config."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import step_test
import tiny
import tiny_run

from cbkd_jax import (
  blocks,
  config,
  evaluation,
  experiment,
  quantization,
  step,
  student,
)
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import Preempted, UserError
from cbkd_jax.models.fake_quant import Quantized
from cbkd_jax.replicas import AXIS

pytestmark = pytest.mark.usefixtures('quick_compilation')

# All in one phase, which has the settings of the thaw.
JOINT = {
  'teacher__model': 'tiny_run:shallow',
  'teacher__steps': 2,
  'compression__keep': (1.0, 0.5),
  'compression__init': 'random',
  'order': 'scratch',
  'stage__steps': 2,
  'thaw__steps': 6,
  'thaw__quantize': 'int8',
}


def quantized(made):
  spec, *rest = made
  network = quantization.training(spec.student, AXIS)
  return dataclasses.replace(spec, student=network), *rest


def test_a_step_rounds_by_the_global_batch():
  plain = step_test.Run.of(step_test.make('thaw')).take(1)
  one = step_test.Run.of(quantized(step_test.make('thaw'))).take(1)
  assert np.isfinite(one.metrics['loss']).all()
  kernels = [
    run.state.params[0]['unit_0']['conv']['kernel'] for run in (one, plain)
  ]
  assert np.abs(np.subtract(*kernels)).max() > 1e-6
  assert abs(one.metrics['loss'][0] - plain.metrics['loss'][0]) > 1e-4
  two = step_test.Run.of(quantized(step_test.make('thaw')), devices=2).take(1)
  tiny.close(one.metrics, two.metrics, rtol=1e-5)
  tiny.close(*map(jax.device_get, (one.state.params, two.state.params)), 1e-4)


def test_ranges_are_those_of_all_images():
  network = tiny.architecture().network()
  variables = tiny.draw(network)
  images, _ = tiny.images(7)
  replicas = step.Replicas('pmap', tuple(jax.devices()[:1]))
  found = quantization.calibrate(
    network, replicas.put(variables), images, tiny.PLAIN, replicas, 3
  )
  x = np.asarray(normalise(images, tiny.PLAIN))
  outputs, _ = blocks.run(network, variables, x)
  given = [x, *(out.output for out in outputs[:-2]), outputs[-1].pooled]
  names = *('unit_0/conv',) * 3, 'classifier'
  assert len(found) == 4
  for ranges, name, x in zip(found, names, given):
    ((layer, low, high),) = ranges
    assert layer == name
    np.testing.assert_allclose((low, high), (x.min(), x.max()), rtol=1e-5)


def test_a_run_that_was_stopped_goes_on_and_says_how_it_does_in_int8(tmp_path):
  whole = tiny_run.run(tmp_path / 'whole', JOINT)
  polls = iter([False] * 7)
  with pytest.raises(Preempted, match=r'scratch: stopped at step'):
    tiny_run.run(tmp_path / 'cut', JOINT, lambda: next(polls, True))
  rest = tiny_run.run(tmp_path / 'cut', JOINT)
  assert [r['student'] for r in (whole, rest)] == [whole['student']] * 2
  weights = [
    student.read(tmp_path / name / 'student')[1] for name in ('whole', 'cut')
  ]
  assert tiny.same(*weights)

  model = json.loads((tmp_path / 'cut/student/model.json').read_text())
  assert model['quantize'] == 'int8'
  # The same figure from what was saved, without the run.
  network, variables, augmentation = student.read(tmp_path / 'cut/student')
  dataset = experiment.load_data(tiny_run.values(**JOINT))
  replicas = step.Replicas('pmap', tuple(jax.devices()[:1]))
  variables = replicas.put(variables)
  ranges = quantization.calibrate(
    network, variables, dataset.train.images, augmentation, replicas, 96
  )
  scores = evaluation.scores(
    *evaluation.predict(
      quantization.calibrated(network, ranges),
      variables,
      dataset.test,
      augmentation,
      replicas,
      32,
    )
  )
  assert whole['student']['quantized_accuracy'] == scores['accuracy']
  assert whole['stages'][0]['quantized_accuracy'] == scores['accuracy']


def test_the_thaws_student_alone_is_rounded():
  exp = experiment.build(tiny_run.values(thaw__quantize='int8'))
  augmentation = experiment.plan_augmentation(exp.config)
  specs = [exp.spec(stage, augmentation) for stage in exp.stages]
  *frozen, thaw = specs
  for network in (
    *(spec.student for spec in frozen),
    *(spec.teacher for spec in specs),
    exp.teacher_spec(augmentation).student,
  ):
    assert not any(isinstance(part, Quantized) for part in network.parts)
  plain = exp.network(exp.stages[-1])
  assert thaw.student.parts == tuple(Quantized(p, AXIS) for p in plain.parts)
  values = tiny_run.values(thaw__quantize='int8', sync_batch_norm=False)
  exp = experiment.build(values)
  thaw = exp.spec(exp.stages[-1], augmentation)
  assert {part.axis_name for part in thaw.student.parts} == {None}


def test_what_can_not_be_rounded_is_refused():
  with pytest.raises(
    UserError,
    match=r"^thaw.quantize = 'int4': must be 'int8', or '' for no quantis",
  ):
    config.check(tiny_run.values(thaw__quantize='int4'))
  values = tiny_run.values()
  values['stage']['quantize'] = 'int8'
  with pytest.raises(UserError, match=r'^stage.quantize: no such field'):
    config.check(values)
  values = tiny_run.values(objective='simkd', thaw__quantize='int8')
  with pytest.raises(
    UserError, match=r"^thaw.quantize = 'int8': must be '' with simkd"
  ):
    experiment.build(values)
