"""The train step on a tiny network: what moves, what must not, and by how much.

Every multi-device step is waited for: several programs with collectives in
flight can starve each other of threads on virtual devices.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, objectives, replicas, sharding, step
from cbkd_jax.blocks import Variables
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.objectives import method
from cbkd_jax.replicas import AXIS
from cbkd_jax.stages import Training

EXAMPLES, BATCH = 32, 8
SGD = Training(steps=8, schedule='constant', weight_decay=5e-3, clip_norm=0.3)
pytestmark = pytest.mark.usefixtures('quick_compilation')

# Student blocks, trained parts, shared prefix.
STAGES = {
  'stage_1': ((0, 0, 1), (0, 0, 1, 1), 2),
  'stage_2': ((0, 1, 1), (0, 1, 0, 0), 1),
  'clockwise': ((0, 1, 1), (0, 0, 1, 1), 1),
}


def bools(digits):
  return tuple(map(bool, digits))


@functools.cache
def make(name='stage_1', *, dtype=jnp.float32, **fields):
  """The spec of a stage, or of the folded student's thaw, and its variables."""
  axis_name = fields.get('axis', AXIS)
  if not fields.get('sync_batch_norm', True):
    axis_name = None
  teacher = tiny.architecture(axis_name, dtype)
  if name == 'thaw':
    student = tiny.student(teacher).network(dtype, folded=True)
    trained, shared = (True,) * 4, 0
  else:
    is_student, trained, shared = STAGES[name]
    student = tiny.hybrid(teacher, bools(is_student), dtype)
  spec = step.StepSpec(
    **{
      'student': student,
      'teacher': teacher.network(),
      'objective': objectives.parse('0.3*ce + 0.7*kd'),
      'training': SGD,
      'trained': bools(trained),
      'shared': shared,
      'augmentation': tiny.PLAIN,
      'image_shape': tiny.IMAGE_SHAPE,
    }
    | fields
  )
  teacher_variables = tiny.draw(spec.teacher or student)
  own = tiny.draw(student, seed=1)
  variables = Variables(
    *(
      (*theirs[:shared], *ours[shared:])
      for ours, theirs in zip(own, teacher_variables)
    )
  )
  return spec, variables, teacher_variables


@dataclasses.dataclass
class Run:
  """A phase's steps one after another, as the training loop makes them."""

  spec: step.StepSpec
  state: step.TrainState
  teacher: Variables
  replicas: step.Replicas
  metrics: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  rows: Any = None

  @classmethod
  def of(cls, made, devices=1, spmd='pmap', model=1):
    spec, variables, teacher = made
    replicas = step.Replicas(spmd, tuple(jax.devices()[:devices]), model)
    if spmd == 'jit':
      spec = dataclasses.replace(
        spec,
        axis=None,
        student=sharding.gathered(spec.student, replicas),
        teacher=sharding.gathered(spec.teacher, replicas),
      )
    state = step.create_train_state(spec, variables, teacher, jax.random.key(5))
    rows = np.random.default_rng(0).permuted(
      np.tile(np.arange(EXAMPLES, dtype=np.int32), (40, 1)), axis=1
    )[:, :BATCH]
    return cls(spec, *replicas.divide((state, teacher)), replicas, rows=rows)

  def take(self, steps, per_call=1):
    data = self.replicas.put(step.Resident(*tiny.images(EXAMPLES)))
    fn = step.compiled_train(self.spec, self.replicas)
    devices = len(self.replicas.devices)
    for done in range(0, steps, per_call):
      start = int(self.state.step)
      rows = self.rows[start : start + min(per_call, steps - done)]
      rows = rows.reshape(len(rows), devices, -1).swapaxes(0, 1)
      drawn = step.Drawn(np.ascontiguousarray(rows))
      drawn = self.replicas.put_shares(drawn)
      self.state, metrics = fn(self.state, self.teacher, data, drawn)
      jax.block_until_ready((self.state, metrics))
      for key, values in jax.device_get(metrics).items():
        assert len(values) == rows.shape[1]
        self.metrics.setdefault(key, []).extend(values.tolist())
    return self


def moved(before, after):
  """Per leaf, whether any of its bits changed."""
  return [
    not tiny.same(a, b)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after))
  ]


@pytest.mark.parametrize('name', STAGES)
def test_a_stage_moves_its_block_alone(name):
  made = make(name)
  spec, before, teacher = made
  teacher = jax.tree.map(np.array, teacher)
  run = Run.of(made).take(4)
  after = run.state.variables
  for i, trained in enumerate(spec.trained):
    if trained:
      assert all(moved(before.params[i], after.params[i]))
      assert all(moved(before.batch_stats[i], after.batch_stats[i]))
    else:
      assert tiny.same(before.params[i], after.params[i])
      assert tiny.same(before.batch_stats[i], after.batch_stats[i])
  assert tiny.same(teacher, run.teacher)
  assert int(run.state.step) == 4
  # Momentum of what trains, nothing else.
  state = [x for x in jax.tree.leaves(run.state.opt_state) if x.ndim]
  assert sum(x.size for x in state) == sum(
    blocks.count_params(p) for p, t in zip(before.params, spec.trained) if t
  )


def test_the_thaw_moves_everything():
  made = make('thaw')
  run = Run.of(made).take(2)
  before, after = made[1], run.state.variables
  assert all(moved(before, after))


def naive_loss(spec, teacher, x, labels):
  """Teacher and hybrid in full, the losses written out."""
  outputs, _ = blocks.run(spec.teacher, teacher, x)
  q = jax.nn.softmax(outputs[-1].logits / 4)

  def loss(params, batch_stats):
    variables = Variables(params, batch_stats)
    outputs, new = blocks.run(spec.student, variables, x, train=spec.trained)
    logits = outputs[-1].logits
    ce = -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])
    p = jax.nn.softmax(logits / 4)
    kd = 16 * jnp.mean(jnp.sum(q * (jnp.log(q) - jnp.log(p)), -1))
    accuracy = jnp.mean(logits.argmax(-1) == labels)
    return 0.3 * ce + 0.7 * kd, (ce, kd, accuracy, new)

  return loss


@pytest.mark.parametrize('name', [*STAGES, 'thaw'])
def test_a_step_is_that_of_a_naive_implementation(name):
  spec, variables, teacher = made = make(name)
  run = Run.of(made).take(1)
  images, labels = tiny.images(EXAMPLES)
  x = normalise(images[run.rows[0]], tiny.PLAIN)
  local = make(name, sync_batch_norm=False)[0]
  loss_fn = naive_loss(local, teacher, x, labels[run.rows[0]])
  (loss, aux), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(
    *variables
  )
  ce, kd, accuracy, batch_stats = aux
  trained = tuple(g for g, t in zip(grads, spec.trained) if t)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(trained)))
  assert norm > SGD.clip_norm
  assert {k: v[0] for k, v in run.metrics.items()} == pytest.approx(
    {
      'loss': float(loss),
      'ce': float(ce),
      'kd': float(kd),
      'accuracy': float(accuracy),
      'grad_norm': norm,
    },
    rel=1e-4,
  )
  tiny.close(run.state.batch_stats, batch_stats, rtol=1e-5, atol=1e-6)

  def first_step(p, g):  # Nesterov's: (1 + momentum) times the gradient.
    return p - 0.1 * 1.9 * (g * (SGD.clip_norm / norm) + 5e-3 * p)

  for i, is_trained in enumerate(spec.trained):
    if is_trained:
      expected = jax.tree.map(first_step, variables.params[i], grads[i])
      tiny.close(run.state.params[i], expected, rtol=1e-4, atol=1e-6)


AUGMENTED = {
  'augmentation': Augmentation(2, True, (0.5,), (0.25,)),
}


MIXED = {
  'augmentation': dataclasses.replace(
    *AUGMENTED.values(),
    alternating_flip=True,
    cutout=2,
    mixup=1.0,
    cutmix=1.0,
  ),
}


@functools.cache
def augmented_run(devices, spmd, model=1):
  axis = None if spmd == 'jit' else AXIS
  run = Run.of(make('stage_1', **MIXED, axis=axis), devices, spmd, model)
  return run.take(5)


def assert_same_run(one, two):
  tiny.close(one.state.variables, two.state.variables, rtol=1e-4, atol=2e-5)
  tiny.close(one.metrics, two.metrics, rtol=1e-4, atol=1e-5)


def test_one_device_is_four_devices_however_they_share(
  monkeypatch, uniform_shares
):
  one = augmented_run(1, 'pmap')
  assert_same_run(one, augmented_run(4, 'pmap'))
  assert_same_run(one, augmented_run(4, 'shard_map'))
  monkeypatch.setattr(replicas, '_LEAST_SHARDED', 1)
  assert_same_run(one, found := augmented_run(4, 'jit', 2))
  assert_divided(found)


def test_a_thaw_is_jit_on_a_mesh(monkeypatch):
  monkeypatch.setattr(replicas, '_LEAST_SHARDED', 1)
  one = Run.of(make('thaw')).take(3)
  two = Run.of(make('thaw', axis=None), 4, 'jit', 4).take(3)
  assert_same_run(one, two)
  assert_divided(two)


def assert_divided(run):
  """Whole but for the few whose sizes nothing divides, such as 1 channel."""
  held = [
    leaf.addressable_data(0).size / leaf.size
    for leaf in jax.tree.leaves((run.state.params, run.teacher))
  ]
  model = run.replicas.model
  assert min(held) == 1 / model
  assert np.mean(np.array(held) == 1 / model) > 0.6


def test_replicas_agree_with_each_other(uniform_shares):
  state = augmented_run(4, 'shard_map').state
  for leaf in jax.tree.leaves(state):
    assert len(leaf.addressable_shards) == 4
    first, *others = (np.asarray(s.data) for s in leaf.addressable_shards)
    for other in others:
      np.testing.assert_array_equal(first, other)


def test_several_steps_in_a_call():
  # Two, and then the one that is left.
  together = Run.of(make('stage_1', **AUGMENTED)).take(3, per_call=2)
  singly = Run.of(make('stage_1', **AUGMENTED)).take(3)
  assert_same_run(together, singly)
  assert int(together.state.step) == 3


def test_a_resumed_run_is_the_same_run():
  run = Run.of(make('stage_1', **AUGMENTED)).take(2)
  saved = jax.tree.map(np.array, run.state)
  one = run.take(2)
  two = Run.of(make('stage_1', **AUGMENTED))
  two.state = two.replicas.put(saved)
  two.take(2)
  assert tiny.same(one.state, two.state)
  assert one.metrics['loss'][2:] == two.metrics['loss']


def test_each_step_augments_anew():
  losses = []
  for at in (0, 0, 1):
    run = Run.of(make('stage_1', **AUGMENTED))
    run.state = run.replicas.put(run.state._replace(step=jnp.int32(at)))
    run.rows = run.rows[[0, 0]]
    losses += run.take(1).metrics['loss']
  assert losses[0] == losses[1]
  assert losses[0] != pytest.approx(losses[2], rel=1e-4)


def test_a_state_shares_no_memory_with_what_it_was_made_of():
  # Or donating it would pull the teacher from under the stage.
  spec, variables, teacher = make()
  state = step.create_train_state(spec, variables, teacher, jax.random.key(0))
  assert tiny.same(state.variables, variables)

  def memory(tree):
    return {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)}

  assert not memory(state) & memory((variables, teacher))


def test_the_state_is_donated_and_nothing_else():
  made = make()
  run = Run.of(made)
  state = run.state
  run.take(1)
  for leaf in jax.tree.leaves((state.params, state.batch_stats)):
    assert leaf.is_deleted()
  # The stage's frozen parts began as the teacher's own arrays.
  for leaf in jax.tree.leaves((made[1], made[2], run.teacher)):
    assert not leaf.is_deleted()


def test_frozen_statistics_stay_on_any_number_of_devices():
  """A mean over three equal float32 numbers is not always that number."""
  made = make('stage_2', sync_batch_norm=False)
  spec, variables, _ = made
  run = Run.of(made, devices=3)
  run.rows = run.rows[:, :6]  # divisible by three
  run.take(2)
  for i, trained in enumerate(spec.trained):
    same = tiny.same(run.state.batch_stats[i], variables.batch_stats[i])
    assert same == (not trained or not variables.batch_stats[i])


def test_batch_statistics_of_each_replica():
  made = make('thaw', sync_batch_norm=False)
  _, variables, _ = made
  run = Run.of(made, devices=4).take(1)
  # By hand, of the first normalisation: running averages over replicas of
  # each one's own variance.
  images, _ = tiny.images(EXAMPLES)
  x = normalise(images[run.rows[0]], tiny.PLAIN)
  layer = variables.params[0]['unit_0']['conv']
  y = jax.lax.conv_general_dilated(
    x,
    layer['kernel'],
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  y = np.asarray(y) + np.asarray(layer['bias'])
  each = y.reshape(4, -1, y.shape[-1]).var(1)
  old = variables.batch_stats[0]['unit_0']['norm']
  found = run.state.batch_stats[0]['unit_0']['norm']
  np.testing.assert_allclose(
    found['var'], 0.9 * np.asarray(old['var']) + 0.1 * each.mean(0), rtol=1e-4
  )
  # Which is not the variance over all of them.
  assert np.abs(each.mean(0) - y.reshape(-1, y.shape[-1]).var(0)).max() > 1e-3


def test_one_batch_is_overfitted():
  training = dataclasses.replace(SGD, steps=60, learning_rate=0.1)
  run = Run.of(
    make(
      'thaw',
      teacher=None,
      objective=objectives.parse('ce'),
      training=training,
    )
  )
  run.rows = np.tile(run.rows[0], (60, 1))
  run.teacher = None
  losses = run.take(60).metrics['loss']
  assert losses[0] > 0.8
  assert losses[-1] < 0.05
  assert run.metrics['accuracy'][-1] == 1


def test_bfloat16_computes_but_does_not_store():
  run = Run.of(make('stage_2', dtype=jnp.bfloat16)).take(3)
  exact = Run.of(make('stage_2')).take(3)
  before = make('stage_2')[1]
  state = run.state
  for leaf in jax.tree.leaves((state.variables, state.opt_state)):
    if leaf.ndim:
      assert leaf.dtype == jnp.float32
    assert np.isfinite(leaf).all()
  for i in (0, 2, 3):
    assert tiny.same(state.params[i], before.params[i])
    assert tiny.same(state.batch_stats[i], before.batch_stats[i])
  # Close to float32's, but rounded.
  assert run.metrics['loss'] == pytest.approx(exact.metrics['loss'], rel=0.05)
  assert run.metrics['loss'] != exact.metrics['loss']


@dataclasses.dataclass(frozen=True)
class Weighted(method.Method):
  """Distance of scaled logits; the scale is trained, calls are counted."""

  needs = ('indices', 'step')
  recipe = 'weighted()'
  paper = '-'

  def init(self, rng, student_view, teacher_view):
    shape = (student_view.logits.shape[-1],)
    return {
      'params': {'scale': jax.random.uniform(rng, shape)},
      'state': {'calls': jnp.int32(0)},
    }

  def loss(self, variables, student_view, teacher_view, *, indices, step):
    scale = variables['params']['scale'][None]
    distance = student_view.logits * scale - teacher_view.logits
    calls = variables['state']['calls'] + 1
    metrics = {'step': step, 'indices': jnp.mean(indices.astype(jnp.float32))}
    return jnp.mean(distance**2), metrics, {'calls': calls}


def test_an_objectives_own_parameters_train_with_the_stage(monkeypatch):
  monkeypatch.setitem(objectives.METHODS, 'weighted', Weighted)
  objective = objectives.parse('weighted() + ce')
  made = make('stage_2', objective=objective)
  run = Run.of(made)
  before = jax.tree.map(np.array, run.state.params[-1])
  assert before['weighted']['scale'].shape == (3,)
  run.take(3)
  after = run.state.params[-1]
  assert np.all(
    np.asarray(after['weighted']['scale']) != before['weighted']['scale']
  )
  assert run.state.objective_state['weighted']['calls'] == 3
  assert run.metrics['weighted/step'] == [0, 1, 2]
  np.testing.assert_allclose(
    run.metrics['weighted/indices'], run.rows[:3].mean(1)
  )
  assert run.metrics['loss'] == pytest.approx(
    [a + b for a, b in zip(run.metrics['weighted'], run.metrics['ce'])]
  )
  momentum = [x.size for x in jax.tree.leaves(run.state.opt_state) if x.ndim]
  assert sum(momentum) == 3 + blocks.count_params(made[1].params[1])
