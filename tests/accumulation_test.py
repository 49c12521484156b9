"""Micro-batches: the step of their mean gradient, the same on any devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import step_test
import tiny

from cbkd_jax import accumulation, objectives, replicas
from cbkd_jax.batch import Batch
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.replicas import AXIS
from cbkd_jax.views import Frozen

pytestmark = pytest.mark.usefixtures('quick_compilation')
PARTS = 2
FLIPS = Augmentation(0, True, (0.5,), (0.25,))


@pytest.mark.parametrize('unroll', [False, True])
def test_each_example_is_in_one_micro_batch_with_all_that_is_its_own(unroll):
  count = jnp.arange(6.0)
  keys = jax.vmap(jax.random.key)(jnp.arange(6, dtype=jnp.uint32))
  batch = Batch(
    x=count[:, None],
    again=10 * count[:, None],
    frozen=(Frozen((100 * count,), None), None),
    available={
      'labels': jnp.arange(6),
      'mixed': (7 * jnp.arange(6), jnp.float32(0.3)),
      'indices': 5 * jnp.arange(6),
      'keys': keys,
      'train_labels': jnp.arange(9),
      'teacher_head': jnp.sin,
    },
  )

  def fn(calls, own):
    labels = own.available['labels']
    mixed, share = own.available['mixed']
    assert own.x.shape == (2, 1)
    assert own.available['train_labels'].shape == (9,)
    found = [
      own.x[:, 0],
      own.again[:, 0] / 10,
      own.frozen[0].student[0] / 100,
      labels,
      mixed / 7 * share / 0.3,
      own.available['indices'] / 5,
      jax.random.key_data(own.available['keys'])[:, 1],
    ]
    # Each call's own examples are told apart by what was handed on to it.
    call = jnp.zeros(3).at[calls].set(3.0)
    found = jnp.stack([jnp.asarray(f, jnp.float32) for f in found])
    return calls + 1, call[:, None, None] * found[None]

  calls, found = jax.jit(
    lambda batch_calls: accumulation.mean(fn, batch_calls, batch, 3, unroll)
  )(jnp.int32(0))
  assert calls == 3
  for i, rows in enumerate(([0, 3], [1, 4], [2, 5])):
    np.testing.assert_allclose(found[i], np.tile(rows, (7, 1)), rtol=1e-6)


def test_a_step_is_that_of_the_mean_of_gradients_by_hand():
  _, variables, teacher = made = step_test.make('thaw', micro_batches=PARTS)
  run = step_test.Run.of(made).take(1)
  images, labels = tiny.images(step_test.EXAMPLES)
  local = step_test.make('thaw', sync_batch_norm=False)[0]

  @jax.jit
  def differentiate(params, batch_stats, x, labels):
    loss_fn = step_test.naive_loss(local, teacher, x, labels)
    return jax.value_and_grad(loss_fn, has_aux=True)(params, batch_stats)

  batch_stats, grads, values = variables.batch_stats, [], []
  for part in range(PARTS):
    rows = run.rows[0][part::PARTS]
    x = normalise(images[rows], tiny.PLAIN)
    (loss, aux), found = differentiate(
      variables.params, batch_stats, x, labels[rows]
    )
    *figures, batch_stats = aux
    grads.append(found)
    values.append([float(loss), *map(float, figures)])
  grads = jax.tree.map(lambda *g: sum(g) / PARTS, *grads)
  norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(grads)))
  found = [run.metrics[k][0] for k in ('loss', 'ce', 'kd', 'accuracy')]
  np.testing.assert_allclose(found, np.mean(values, 0), rtol=1e-4)
  assert run.metrics['grad_norm'][0] == pytest.approx(norm, rel=1e-4)
  tiny.close(run.state.batch_stats, batch_stats, rtol=1e-5, atol=1e-6)
  # Once, and Nesterov's: (1 + momentum) times the clipped mean gradient.
  scale = min(1.0, step_test.SGD.clip_norm / norm)

  def stepped(p, g):
    return p - 0.1 * 1.9 * (g * scale + 5e-3 * p)

  expected = jax.tree.map(stepped, variables.params, grads)
  tiny.close(run.state.params[:-1], expected, rtol=1e-4, atol=1e-6)
  assert run.state.step == 1


@functools.cache
def augmented_run(devices, spmd, model=1):
  axis = None if spmd == 'jit' else AXIS
  made = step_test.make(
    'stage_1', augmentation=FLIPS, axis=axis, micro_batches=PARTS
  )
  return step_test.Run.of(made, devices, spmd, model).take(2)


def test_one_device_is_four_devices_is_one_program_of_the_whole_batch():
  one = augmented_run(1, 'pmap')
  step_test.assert_same_run(one, augmented_run(4, 'pmap'))
  step_test.assert_same_run(one, augmented_run(4, 'jit', 2))


def setting(devices):
  return objectives.Setting(
    blocks=3,
    trained=(2,),
    steps=8,
    batch_size=step_test.BATCH,
    train_size=step_test.EXAMPLES,
    replicas=devices,
    micro_batches=PARTS,
    axis_name=AXIS,
  )


@pytest.mark.thorough
def test_the_objectives_state_goes_from_one_micro_batch_to_the_next():
  """Both move their rows of a memory bank, gathered from all devices."""
  objective = objectives.parse('crd(dimension=4, negatives=6)')
  runs = []
  for devices in 1, 4:
    made = step_test.make(
      'stage_1', objective=objective.bind(setting(devices)), micro_batches=PARTS
    )
    runs.append(step_test.Run.of(made, devices))
  start = np.array(runs[0].state.objective_state['crd']['bank_student'])
  one, four = (run.take(1) for run in runs)
  step_test.assert_same_run(one, four)
  banks = [
    run.state.objective_state['crd']['bank_student'] for run in (one, four)
  ]
  np.testing.assert_allclose(*banks, rtol=1e-4, atol=1e-5)
  moved = np.flatnonzero(np.any(np.asarray(banks[0]) != start, axis=1))
  assert set(moved) == set(one.rows[0].tolist())


@pytest.mark.parametrize('global_batch', [False, True])
def test_embeddings_of_similarities_are_made_for_a_micro_batch(global_batch):
  objective = objectives.parse(f'semckd(factor=1, global_batch={global_batch})')
  bound = objective.bind(setting(devices=2))
  assert bound.micro_batch == 2
  assert bound.terms[0].method.examples == (4 if global_batch else 2)


def temporaries(count):
  """Bytes that the gradients of a deep function need on their way."""
  weights = jax.ShapeDtypeStruct((16, 16, 16), jnp.float32)
  x = jax.ShapeDtypeStruct((512, 16), jnp.float32)

  def gradients(weights, x):
    def loss(weights, x):
      for w in weights:
        x = jnp.tanh(x @ w)
      return jnp.mean(x)

    batch = Batch(x, None, (None, None), {'mixed': None})
    return accumulation.mean(
      lambda _, own: ((), jax.grad(loss)(weights, own.x)),
      (),
      batch,
      count,
      unroll=True,
    )[1]

  compiled = jax.jit(gradients).lower(weights, x).compile(replicas._CPU_OPTIONS)
  return compiled.memory_analysis().temp_size_in_bytes


def test_a_micro_batch_begins_when_the_one_before_has_ended():
  # Unrolled, XLA might run all forward passes first.
  assert temporaries(8) < temporaries(1) / 4
