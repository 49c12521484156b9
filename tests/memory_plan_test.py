"""Estimates of memory against arithmetic, and against XLA's count."""

import dataclasses
import functools
import io

import jax
import pytest
import rich.console
import tiny
import tiny_run

from cbkd_jax import (
  blocks,
  config,
  counting,
  experiment,
  memory_plan,
  objectives,
  step,
  summary,
  views,
)
from cbkd_jax.blocks import Architecture
from cbkd_jax.models import layers, vgg
from cbkd_jax.replicas import Replicas
from cbkd_jax.stages import Training

pytestmark = pytest.mark.usefixtures('quick_compilation')
ONE = Replicas('pmap', tuple(jax.devices()[:1]))


def spec(trained, optimizer='sgd', units=(1, 1, 1), **fields):
  teacher = tiny.architecture(units=units)
  is_student = (False, *trained[1:3])
  return step.StepSpec(
    student=tiny.hybrid(teacher, is_student),
    teacher=teacher.network(),
    objective=objectives.parse('kd'),
    training=Training(steps=1, optimizer=optimizer),
    trained=trained,
    shared=trained.index(True),
    augmentation=tiny.PLAIN,
    image_shape=tiny.IMAGE_SHAPE,
    **fields,
  )


def test_an_estimate_is_what_it_says():
  last = spec((False, False, True, True))
  small, large = (memory_plan.estimate(last, ONE, n) for n in (8, 16))
  # What a batch keeps grows with it, the rest does not.
  assert large.activations == pytest.approx(2 * small.activations, rel=0.02)
  assert large.total - small.total == large.activations - small.activations
  shapes = blocks.shapes(last.student, tiny.IMAGE_SHAPE)
  trained = counting.tree_bytes(shapes.params[2:])
  teacher = blocks.shapes(last.teacher, tiny.IMAGE_SHAPE)
  # Momentum is of what trains; step and key are a few bytes.
  state = counting.tree_bytes(shapes) + trained
  assert small.state == pytest.approx(state, abs=64)
  assert small.gradients == trained
  rest = [tree[2:] for tree in teacher]
  assert small.teacher == counting.tree_bytes(rest)
  adam = memory_plan.estimate(spec((False, False, True, True), 'adamw'), ONE, 8)
  assert adam.total - small.total == pytest.approx(trained, abs=64)
  # More is kept where a shallower block trains, and where all do.
  more = memory_plan.estimate(spec((False, True, False, False)), ONE, 16)
  everything = dataclasses.replace(last, trained=(True,) * 4, shared=0)
  most = memory_plan.estimate(everything, ONE, 16)
  assert large.activations < more.activations < most.activations


def test_micro_batches_and_remat_keep_less():
  trained = (False, True, True, True)
  plain, parts, again = (
    memory_plan.estimate(spec(trained, units=(1, 3, 3), **fields), ONE, 16)
    for fields in ({}, {'micro_batches': 4}, {'remat': True})
  )
  assert parts.activations == pytest.approx(plain.activations / 4, rel=0.02)
  assert again.activations < plain.activations / 1.5
  assert again.held == parts.held == plain.held


def wide(
  num_classes: int, image_shape: tuple[int, ...], dtype, axis_name
) -> Architecture:
  """For `config.teacher.model = 'memory_plan_test:wide'`: weights dominate."""
  del image_shape

  def block(index: int, width: int, units: int) -> vgg.VGGBlock:
    return vgg.VGGBlock(width, units, index < 2, dtype, axis_name)

  return Architecture(
    widths=(8, 256, 256, 256, 256),
    units=(1,) * 5,
    block=block,
    head=lambda: layers.PoolingHead(num_classes),
  )


@functools.cache
def planned(model, **fields):
  values = config.defaults()
  values['data'] |= {'image_shape': (8, 8, 1), 'train_size': 64}
  values['teacher']['model'] = 'memory_plan_test:wide'
  values['compression'] |= {'keep': (1.0,) * 5, 'init': 'random'}
  values |= {'spmd': 'jit', 'batch_size': 4, **fields}
  values['mesh'] = {'data': None, 'model': model}
  return experiment.build(values)


def figures(exp):
  """Of the thaw: the estimate and XLA's count."""
  augmentation = experiment.plan_augmentation(exp.config)
  stage = exp.stages[-1]
  return (
    memory_plan.estimate(
      exp.spec(stage, augmentation, local=True),
      exp.replicas,
      experiment.local_batch(exp),
    ),
    memory_plan.measure(exp.spec(stage, augmentation), exp),
  )


@pytest.mark.thorough
def test_a_device_of_four_holds_a_quarter_and_xla_agrees():
  (whole, whole_xla), (part, part_xla) = (
    figures(planned(model)) for model in (1, 4)
  )
  for one, four in (whole.held, part.held), (whole_xla.held, part_xla.held):
    assert 0.25 < four / one < 0.27
  for guess, found in (whole, whole_xla), (part, part_xla):
    assert guess.held == pytest.approx(found.held, rel=0.01)
    assert 0.5 < guess.total / found.total < 2
  # Whole are one part at a time, and its gradient.
  params = blocks.shapes(planned(4).teacher_network, (8, 8, 1)).params
  assert part_xla.temporaries < 1.25 * counting.tree_bytes(params)
  assert part_xla.total < whole_xla.total / 2


def test_the_plan_says_what_a_device_holds():
  exp = planned(4, order='joint')
  console = rich.console.Console(file=io.StringIO(), width=200)
  summary.show_plan(exp, console)
  memory_plan.show(exp, console)
  lines = console.file.getvalue().splitlines()
  guess, found = figures(exp)
  (held,) = [line for line in lines if line.startswith('A device holds')]
  size = f'{guess.held / 2**20:,.1f}'
  assert held.endswith(f'(large arrays divided over 4): joint {size}')
  (*_, row) = [line.split() for line in lines if line.startswith(' joint')]
  expected = guess.total, found.total, guess.held, found.held
  assert row[1:5] == [f'{x / 2**20:,.1f}' for x in expected]


def test_gathering_hides_no_array_that_a_part_returns_twice():
  augmentation = experiment.plan_augmentation(planned(4).config)
  exp = planned(4)
  stage = exp.stages[0]
  found = [
    views.equal_leaves(spec, *spec.shapes())
    for spec in (
      exp.spec(stage, augmentation),
      exp.spec(stage, augmentation, local=True),
    )
  ]
  assert found[0] == found[1]
  assert len(set(found[0])) < len(found[0])


def test_a_plan_of_five_blocks_fits_80_columns():
  values = tiny_run.values(
    order='joint_inherited',
    teacher__model='vgg13',
    compression__keep=(1.0, 0.5, 0.5, 0.5, 0.25),
    data__image_shape=(32, 32, 3),
    thaw__steps=234_000,
  )
  exp = experiment.build(values, tuple(jax.devices()[:1]))
  console = rich.console.Console(file=io.StringIO(), width=80)
  summary.show_plan(exp, console)
  shown = console.file.getvalue()
  assert '…' not in shown
  assert '  234,024 \n' in shown


def test_the_results_of_a_large_network_fit_80_columns():
  cost = {'params': 23_508_032, 'flops_per_example': 4.1e9}
  scores = {'accuracy': 0.75, 'top_5_accuracy': 0.9}
  close = {'agreement': 0.9, 'kl_to_teacher': 0.1}
  time = {'seconds': 86_400.0, 'examples_per_second': 2345.0}
  found = {
    'dataset': {'name': 'imagenet2012'},
    'teacher': scores | time | cost,
    'stages': [scores | close | time | {'name': 'stage_1', 'warning': None}],
    'student': scores | close | cost,
    'compression': {'params_ratio': 1.0, 'flops_ratio': 1.0},
  }
  console = rich.console.Console(file=io.StringIO(), width=80)
  summary.show_results(found, console)
  shown = console.file.getvalue()
  assert '…' not in shown
  assert ' 23.5M   4,100  86,400 s  2,345 \n' in shown
