"""Methods that relate examples: one device and four take the same step."""

import dataclasses
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import method_runs
import numpy as np
import pytest
import tiny

from cbkd_jax import objectives, step
from cbkd_jax.blocks import Variables
from cbkd_jax.objectives.method import BatchWise
from cbkd_jax.replicas import AXIS
from cbkd_jax.stages import Training

pytestmark = pytest.mark.usefixtures('quick_compilation')

EXAMPLES, BATCH, STEPS = 32, 8, 2
OPTIONS = {
  'crd': {'dimension': 4, 'negatives': 6},
  'cc': {'dimension': 4},
  'semckd': {'factor': 2},
}
METHODS = {
  name: method
  for name, method in objectives.METHODS.items()
  if issubclass(method, BatchWise)
}
# Of every kind one: they see outputs, maps, maps through regressors, a memory
# of examples. The others do so in a thorough session.
SOME = ('dist', 'sp', 'cc', 'crd')


def expression(names, global_batch):
  """All of them in one sum: one program."""
  terms = ['ce']
  for name in names:
    options = {**OPTIONS.get(name, {}), 'global_batch': global_batch}
    inside = ', '.join(f'{k}={v}' for k, v in options.items())
    terms.append(f'0.1*{name}({inside})')
  return ' + '.join(terms)


@functools.cache
def run(devices, names, global_batch=True):
  """Metrics and last variables of two steps of stage 1."""
  setting = objectives.Setting(
    blocks=3,
    trained=(2,),
    steps=STEPS,
    batch_size=BATCH,
    train_size=EXAMPLES,
    replicas=devices,
    axis_name=AXIS,
  )
  architecture = tiny.architecture(AXIS)
  spec = step.StepSpec(
    student=tiny.hybrid(architecture, (False, False, True)),
    teacher=architecture.network(),
    objective=objectives.parse(expression(names, global_batch)).bind(setting),
    training=Training(steps=STEPS, schedule='constant', learning_rate=0.01),
    trained=(False, False, True, True),
    shared=2,
    augmentation=tiny.PLAIN,
    image_shape=tiny.IMAGE_SHAPE,
  )
  teacher = tiny.draw(spec.teacher)
  own = tiny.draw(spec.student, seed=1)
  student = Variables(
    *((*theirs[:2], *ours[2:]) for ours, theirs in zip(own, teacher))
  )
  replicas = step.Replicas('pmap', tuple(jax.devices()[:devices]))
  with mock.patch.object(step, '_create', method_runs.draw_state):
    state = step.create_train_state(spec, student, teacher, jax.random.key(3))
  state, teacher = replicas.put(state), replicas.put(teacher)
  data = replicas.put(step.Resident(*tiny.images(EXAMPLES)))
  rows = np.random.default_rng(0).permutation(EXAMPLES)[: STEPS * BATCH]
  rows = rows.astype(np.int32).reshape(STEPS, devices, -1).swapaxes(0, 1)
  fn = step.compiled_train(spec, replicas)
  metrics = []
  for i in range(STEPS):
    drawn = step.Drawn(np.ascontiguousarray(rows[:, i : i + 1]))
    state, found = fn(state, teacher, data, drawn)
    metrics.append(jax.device_get(jax.block_until_ready(found)))
  return metrics, jax.device_get(state)


def test_the_listed_methods_have_the_option():
  assert {'sp', 'cc', 'rkd', 'pkt', 'crd', 'irg', 'dist', 'hkd'} <= set(METHODS)
  for method in METHODS.values():
    assert not dataclasses.replace(method()).global_batch


@pytest.mark.parametrize(
  'names',
  [
    pytest.param(SOME, id='some'),
    pytest.param(tuple(METHODS), marks=pytest.mark.thorough, id='all'),
  ],
)
def test_gathered_four_devices_are_one(names):
  (one, state_1), (four, state_4) = run(1, names), run(4, names)
  for a, b in zip(one, four):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_allclose(a[key], b[key], rtol=1e-3, err_msg=key)
  tiny.close(state_1.params, state_4.params, rtol=1e-3, atol=1e-4)
  tiny.close(
    state_1.objective_state, state_4.objective_state, rtol=1e-3, atol=1e-4
  )


@pytest.mark.thorough
def test_ungathered_they_are_not():
  """Each replica's examples among themselves: other numbers, but for CRD,
  whose examples meet the memory alone."""
  names = tuple(METHODS)
  (one, _), (four, _) = run(1, names), run(4, names, global_batch=False)
  for name in names:
    close = np.allclose(one[0][name], four[0][name], rtol=1e-3)
    assert close == (name == 'crd'), name


def test_a_gathered_key_is_still_a_key():
  keys = jax.vmap(jax.random.key)(jnp.arange(8, dtype=jnp.uint32))
  gathered = jax.pmap(
    lambda k: objectives.objective._gather(k, 'i'), axis_name='i'
  )(keys.reshape(4, 2))
  assert gathered.shape == (4, 8)
  np.testing.assert_array_equal(
    jax.random.key_data(gathered[2]), jax.random.key_data(keys)
  )
