"""Recomputing instead of keeping: the same numbers in less memory."""

import functools
import re

import jax
import jax.numpy as jnp
import pytest
import step_test
import tiny

from cbkd_jax import blocks, models, objectives, replicas, step

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_a_step_takes_the_same_numbers():
  # An eval-mode block lies above the trained one, and no block has marks.
  kept = step_test.Run.of(step_test.make('stage_2')).take(2)
  again = step_test.Run.of(step_test.make('stage_2', remat=True)).take(2)
  tiny.close(kept.state, again.state, rtol=1e-5, atol=1e-6)
  tiny.close(kept.metrics, again.metrics, rtol=1e-5)


def test_gathered_arrays_are_gathered_again_once(monkeypatch):
  """With or without: none is kept whole for the backward pass."""
  monkeypatch.setattr(replicas, '_LEAST_SHARDED', 1)
  # What other tests have compiled for this spec may be sharded otherwise.
  step.compiled_train.cache_clear()
  runs = [
    step_test.Run.of(
      step_test.make('thaw', axis=None, remat=remat), 4, 'jit', 4
    )
    for remat in (False, True)
  ]
  gathers = []
  for run in runs:
    run.take(1)
    program = step.compiled_train(run.spec, run.replicas)
    (compiled,) = program._compiled.values()
    # The student's kernel of block 2, the only array of its shape.
    gathered = re.findall(r'f32\[3,3,3,4\]\S* all-gather\(', compiled.as_text())
    gathers.append(len(gathered))
  step_test.assert_same_run(*runs)
  assert gathers == [2, 2]


@functools.cache
def temporaries(remat):
  """Bytes between arguments and results of a deep block's gradients."""
  network = models.build('resnet44', 3, tiny.IMAGE_SHAPE).network()
  network = blocks.Network(network.blocks[:1], network.head)
  spec = step.StepSpec(
    student=network,
    teacher=None,
    objective=objectives.parse('ce'),
    training=step_test.SGD,
    trained=(True, True),
    shared=0,
    augmentation=tiny.PLAIN,
    image_shape=tiny.IMAGE_SHAPE,
    axis=None,
    remat=remat,
  )
  lowered = jax.jit(functools.partial(step.train_step, spec)).lower(
    step.state_shapes(spec),
    None,
    step.Resident(*tiny.images(8)),
    step.Drawn(jax.ShapeDtypeStruct((256,), jnp.int32)),
  )
  compiled = lowered.compile(replicas._CPU_OPTIONS)
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.thorough
def test_a_deep_block_keeps_what_lies_between_its_units():
  assert temporaries(True) < temporaries(False) / 2.5
