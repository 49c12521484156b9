"""MobileNetV2: which units stay, their channels and their slices."""

import jax
import numpy as np
import pytest
import tiny
from flax import linen as nn

from cbkd_jax import blocks, compression, initialization, models
from cbkd_jax.errors import UserError
from cbkd_jax.models import mobilenet, mobilenet_layout


@pytest.mark.parametrize(
  ('index', 'units', 'kept'),
  [
    (0, 3, (0, 1, 2)),  # groups of 1 and 2 units
    (0, 2, (0, 1)),
    (1, 1, (0,)),  # one group of 3
    (1, 2, (0, 2)),
    (2, 7, (0, 1, 2, 3, 4, 5, 6)),  # groups of 4 and 3
    (2, 4, (0, 2, 4, 6)),
    (2, 3, (0, 4, 6)),
    (2, 2, (0, 4)),
    (3, 3, (0, 2, 3)),  # groups of 3 and 1
    (3, 2, (0, 3)),
  ],
)
def test_every_group_keeps_its_first_unit(index, units, kept):
  assert mobilenet_layout.kept_units(index, units) == kept


@pytest.mark.parametrize('index', [2, 3])
def test_a_group_without_a_unit_is_an_error(index):
  depth = [3, 3, 7, 4]
  depth[index] = 1
  architecture = models.build('mobilenet_v2', 10, (32, 32, 3))
  student = compression.compress(
    architecture, keep=(1,) * 4, depth=tuple(depth), inherit=1
  )
  with pytest.raises(
    UserError, match=rf'^compression.depth: .*block {index}.*at least 2'
  ):
    student.network(np.float32, folded=True)


def test_params_of_a_student_block_by_hand():
  """Groups are scaled alike, inner channels are 6 times a unit's input."""
  block = models.build('MobileNetV2', 10, (32, 32, 3)).block(2, 18, 4)
  variables, shape = blocks.part_shapes(block, (1, 8, 8, 5))

  def unit(inputs, width):
    inner = 6 * inputs
    convs = inputs * inner + 9 * inner + inner * width
    return convs + 2 * (2 * inner + width)

  # Of 32 and 48 channels, 12 and 18.
  expected = unit(5, 12) + unit(12, 12) + unit(12, 18) + unit(18, 18)
  assert blocks.count_params(variables['params']) == expected
  assert shape == (1, 4, 4, 18)


@pytest.mark.parametrize(
  ('name', 'activation'),
  [('MobileNetV2', nn.relu), ('mobilenet_v2', nn.relu6)],
)
def test_activations_of_the_two_forms(name, activation):
  network = models.build(name, 10, (32, 32, 3)).network()
  for module in (network.blocks[0].stem, *network.blocks, network.head.last):
    assert module.activation is activation


@pytest.mark.parametrize('expansion', [2, None])
def test_a_unit_by_hand(expansion):
  """At one pixel a depthwise convolution is its middle tap."""
  unit = mobilenet.Unit(3, stride=1, expansion=expansion, residual=True)
  module = mobilenet.InvertedResidual(unit, nn.relu6)
  random = np.random.default_rng(3)
  x = np.float32(random.normal(size=(8, 1, 1, 3)))
  variables = jax.tree.map_with_path(
    lambda path, leaf: np.float32(
      random.uniform(0.5, 2, leaf.shape)
      if path[-1].key == 'var'
      else 3 * random.normal(size=leaf.shape)
    ),
    jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False)),
  )
  params, stats = variables['params'], variables['batch_stats']

  def norm(name, y):
    y = (y - stats[name]['mean']) / np.sqrt(stats[name]['var'] + 1e-5)
    return y * params[name]['scale'] + params[name]['bias']

  y = x[:, 0, 0]
  if expansion:
    assert params['conv1']['kernel'].shape == (1, 1, 3, 6)
    y = np.clip(norm('norm1', y @ params['conv1']['kernel'][0, 0]), 0, 6)
    assert np.any(y == 6)
    assert np.any(y == 0)
  y = np.clip(norm('norm2', y * params['conv2']['kernel'][1, 1, 0]), 0, 6)
  y = norm('norm3', y @ params['conv3']['kernel'][0, 0])
  out = module.apply(variables, x, train=False)
  np.testing.assert_allclose(out[:, 0, 0], x[:, 0, 0] + y, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope='module')
def sliced():
  """A teacher, and `(keep, depth) -> per block its slice`, head included."""
  architecture = models.build('mobilenet_v2', 5, (8, 8, 3))
  teacher = tiny.draw(architecture.network(), (8, 8, 3))

  def part(variables, i):
    return variables.params[i], variables.batch_stats[i]

  def slices(keep, depth):
    student = compression.compress(
      architecture, keep=keep, depth=depth, inherit=1
    )
    random = tiny.draw(student.network(np.float32, folded=False), (8, 8, 3))
    found = {}
    for i in (1, 2, 3):
      new, kept = initialization.slice_block(
        architecture, i, student.units[i], part(teacher, i), part(random, i)
      )
      assert jax.tree.map(np.shape, new) == jax.tree.map(
        np.shape, part(random, i)
      )
      found[i] = *new, kept
    head = initialization.slice_head(
      architecture, part(teacher, -1), part(random, -1), kept
    )
    return {**found, 4: head}

  return teacher, slices


def best(number, importance):
  return np.sort(np.argsort(-importance, kind='stable')[:number])


def test_slicing_a_block_of_two_groups(sliced):
  """Units and channels by hand; a group's units agree on their sum.

  The second group's first unit stays, though evenly spaced units miss it.
  """
  teacher, slices = sliced
  params, stats, kept = slices((1, 0.5, 0.25, 0.25), (3, 3, 3, 2))[2]
  old = jax.tree.map(np.asarray, teacher.params[2])
  new = params['inner']

  def scale(unit, layer):
    return np.abs(old[f'unit_{unit}'][layer]['scale'])

  kernel = old['unit_0']['conv1']['kernel']
  inputs = best(8, np.abs(kernel).sum((0, 1, 3)))
  shallow = best(16, sum(scale(n, 'norm3') for n in (0, 1, 2, 3)))
  deep = best(24, sum(scale(n, 'norm3') for n in (4, 5, 6)))
  np.testing.assert_array_equal(kept, deep)
  origins = (
    (0, inputs, shallow),
    (4, shallow, deep),
    (6, deep, deep),
  )
  for n, (origin, reads, writes) in enumerate(origins):
    inner = best(
      6 * len(reads), scale(origin, 'norm1') + scale(origin, 'norm2')
    )
    for layer, rows, columns in (
      ('conv1', reads, inner),
      ('conv2', [0], inner),  # depthwise
      ('conv3', inner, writes),
    ):
      kernel = old[f'unit_{origin}'][layer]['kernel']
      np.testing.assert_array_equal(
        new[f'unit_{n}'][layer]['kernel'], kernel[:, :, rows][..., columns]
      )
    var = teacher.batch_stats[2][f'unit_{origin}']['norm2']['var']
    np.testing.assert_array_equal(
      stats['inner'][f'unit_{n}']['norm2']['var'], np.asarray(var)[inner]
    )


def test_slicing_at_full_width_keeps_everything(sliced):
  teacher, slices = sliced
  found = slices((1, 1, 1, 1), ())
  for i in (1, 2, 3):
    params, stats, _ = found[i]
    assert tiny.same(params['inner'], teacher.params[i])
    assert tiny.same(stats['inner'], teacher.batch_stats[i])
  assert tiny.same(found[4], (teacher.params[4], teacher.batch_stats[4]))
