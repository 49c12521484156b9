"""The work that a stage must not do, by XLA's count of the compiled step."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cbkd_jax import cache, config, counting, experiment, minimum
from cbkd_jax.models import layers

BATCH = 16


def build(name, **changes):
  """An experiment on one device, its batch so small that it compiles fast."""
  config.add_configs_to_path()
  values = importlib.import_module(f'configs.{name}').get_config()
  values.batch_size = BATCH
  values.spmd = 'shard_map'
  values.update_from_flattened_dict(changes)
  return experiment.build(config.plain(values), devices=(jax.devices()[0],))


def specs(exp):
  augmentation = experiment.plan_augmentation(exp.config)
  return {stage.name: exp.spec(stage, augmentation) for stage in exp.stages}


THOROUGH = pytest.mark.thorough


@pytest.mark.parametrize(
  ('name', 'model', 'phases'),
  [
    # Three units of a kind are as good as nine, and take a third as long to
    # compile. Of every kind of phase one.
    ('cifar10_resnet56', 'resnet20', ('stage_1', 'thaw')),
    pytest.param(*('cifar10_vgg13', 'vgg13', ('stage_2',)), marks=THOROUGH),
    pytest.param('cifar10_resnet56', 'resnet56', None, marks=THOROUGH),
    pytest.param('cifar10_vgg13', 'vgg13', None, marks=THOROUGH),
  ],
)
def test_no_stage_does_more_than_it_must(name, model, phases):
  """Normalisation, activations, loss and optimiser are within the 5 %."""
  exp = build(name, **{'teacher.model': model})
  found = specs(exp)
  assert {*(phases or found)} <= {*found}
  for phase in phases or found:
    spec = found[phase]
    least = minimum.step_flops(spec)
    ours = counting.step_flops(spec, BATCH, train_size=64)
    # XLA may leave out gradients that the arithmetic counts: those of the
    # trained block's input.
    assert 0.95 * least < ours <= 1.05 * least, phase


def test_the_naive_step_and_the_minimum_of_resnet56():
  """By hand; published for ResNet-56: 0.125 G multiply-adds (0.127 here)."""
  exp = build('cifar10_resnet56', **{'compression.keep': (1, 0.5, 0.5)})
  spec = specs(exp)['stage_1']
  *blocks, head = minimum.part_flops(spec.teacher.parts, (32, 32, 3))
  # Positions in the padding are not counted: (32 * 3 - 2)^2 of (32 * 3)^2.
  at_32, at_16, at_8 = ((side * 3 - 2) ** 2 for side in (32, 16, 8))
  stem, unit = 2 * 3 * 16 * at_32, 2 * 16 * 16 * at_32
  assert blocks[0] == stem + 18 * unit
  strided = (16 * 3 - 1) ** 2  # every second position, one tap in the padding
  shortcut = 2 * 16 * 32 * 16**2
  first = 2 * 16 * 32 * strided + shortcut
  assert blocks[1] == first + 17 * 2 * 32 * 32 * at_16
  assert head == 2 * 64 * 10
  strided = (8 * 3 - 1) ** 2
  deep = 2 * 32 * 64 * strided + 2 * 32 * 64 * 8**2 + 17 * 2 * 64 * 64 * at_8
  assert blocks[2] == deep
  student = minimum.part_flops(spec.student.parts, (32, 32, 3))
  whole = sum(blocks) + head
  expected = whole + 3 * (student[2] + student[3])
  assert minimum.step_flops(spec) == expected
  assert minimum.step_flops(spec, cached=True) == expected - whole
  naive = sum(student[:2]) + expected
  assert 1.55 < naive / expected < 1.6


def test_the_minimum_of_a_convolution_by_brute_force():
  for size, kernel, stride, padding, dilation, groups in (
    (7, 3, 1, ((1, 1), (1, 1)), 1, 1),
    (8, 3, 2, ((1, 1), (1, 1)), 1, 1),
    (8, 5, 2, ((2, 2), (0, 3)), 1, 1),
    (9, 3, 1, ((2, 2), (2, 2)), 2, 1),
    (8, 3, 1, ((1, 1), (1, 1)), 1, 4),
  ):
    module = nn.Conv(
      8,
      (kernel, kernel),
      strides=stride,
      padding=padding,
      kernel_dilation=dilation,
      feature_group_count=groups,
      use_bias=False,
    )
    x = jnp.ones((1, size, size, 4))
    # Of ones: each output is the number of its products.
    ones = {'params': {'kernel': jnp.ones((kernel, kernel, 4 // groups, 8))}}
    products = np.asarray(module.apply(ones, x)).sum()
    jaxpr = jax.make_jaxpr(module.apply)(ones, x)
    assert minimum._count(jaxpr.jaxpr) == 2 * products


def test_a_cached_step_is_what_trains_and_what_lies_above():
  """XLA's count of the program that looks up what is frozen."""
  exp = build(
    'cifar10_resnet56',
    **{
      'teacher.model': 'resnet20',  # as good, and faster to compile
      'compression.keep': (1, 0.5, 0.5),
      'cache.prefix': True,
      'cache.views': 2,
    },
  )
  spec = specs(exp)['stage_1']
  plan = cache.plan(spec, 'bfloat16', 64)
  # The cut's map in bfloat16 and ten logits.
  assert plan.row_bytes == 2 * 16 * 16 * 32 + 4 * 10
  ours = counting.step_flops(
    cache.with_layout(spec, plan), BATCH, train_size=64
  )
  least = minimum.step_flops(spec, cached=True)
  assert 0.95 * least < ours <= 1.1 * least


def test_a_program_for_a_cpu_is_the_same_beside_a_gpu(monkeypatch):
  """There it is traced for counting alone, while a GPU is the default."""

  def barrier():
    jaxpr = jax.make_jaxpr(lambda x: layers.materialise(x))(jnp.ones(2))
    return 'optimization_barrier' in str(jaxpr)

  assert barrier()
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not barrier()
  with jax.default_device(jax.devices()[0]):
    assert barrier()
