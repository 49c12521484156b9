"""DenseNet-BC against the paper's sizes and a network of plain arrays."""

import jax
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, models
from cbkd_jax.errors import UserError


def params(depth, growth, classes=10):
  """By the paper: (channels of the groups' outputs, parameters)."""
  units, width = (depth - 4) // 6, 2 * growth
  found, total = [], 9 * 3 * width
  for group in range(3):
    if group > 0:
      total += 2 * width + width * (width // 2)
      width //= 2
    for _ in range(units):
      inner = 4 * growth
      total += 2 * width + width * inner + 2 * inner + 9 * inner * growth
      width += growth
    found.append(width)
  return tuple(found), total + 2 * width + width * classes + classes


def test_the_papers_sizes():
  """Table 2, in millions; and the first as public code counts it."""
  assert params(100, 12)[1] == 769_162
  for depth, growth, millions in (
    (100, 12, 0.8),
    (250, 24, 15.3),
    (190, 40, 25.6),
  ):
    assert round(params(depth, growth)[1] / 1e6, 1) == millions


@pytest.mark.parametrize(('depth', 'growth'), [(10, 3), (22, 12), (40, 12)])
def test_params_by_the_papers_definition(depth, growth):
  name = f'densenet_bc_{depth}_{growth}'
  architecture = models.build(name, 10, (32, 32, 3))
  widths, expected = params(depth, growth)
  assert architecture.widths == widths
  variables = blocks.shapes(architecture.network(), (32, 32, 3))
  assert blocks.count_params(variables.params) == expected


@pytest.mark.parametrize(
  ('index', 'width', 'units', 'entry', 'growth'),
  [
    (0, 216, 16, 24, 12),
    (1, 300, 16, 108, 12),
    (2, 342, 16, 150, 12),
    (1, 150, 16, 54, 6),  # half of all
    (1, 150, 8, 102, 6),  # half of the units: the transition makes up for it
    (1, 140, 16, 60, 5),  # 12 * 140 / 300 = 5.6
    (2, 17, 16, 1, 1),  # at least 1, and at least 1 comes in
  ],
)
def test_channels_of_a_narrower_block(index, width, units, entry, growth):
  block = models.build('densenet_bc_100_12', 10, (32, 32, 3)).block(
    index, width, units
  )
  assert (block.entry, block.growth, block.units) == (entry, growth, units)
  assert entry + units * growth == width


def test_too_few_channels():
  architecture = models.build('densenet_bc_100_12', 10, (32, 32, 3))
  with pytest.raises(
    UserError, match=r'^compression\.keep: block 2 .* 16 channels; its 16 units'
  ) as error:
    architecture.block(2, 16, 16)
  assert '\n' not in str(error.value)


def test_network_of_plain_arrays():
  network = models.build('densenet_bc_16_2', 5, (8, 8, 3)).network()
  variables = jax.tree.map(np.asarray, tiny.draw(network, (8, 8, 3)))
  random = np.random.default_rng(0)
  x = np.float32(random.normal(size=(2, 8, 8, 3)))
  view = jax.jit(lambda v, x: blocks.view(blocks.run(network, v, x)[0]))(
    variables, x
  )

  def conv(x, kernel):
    return np.asarray(
      jax.lax.conv_general_dilated(
        x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
      )
    )

  def normalize(y, part, *path):
    layer, statistics = variables.params[part], variables.batch_stats[part]
    for name in path:
      layer, statistics = layer[name], statistics[name]
    y = (y - statistics['mean']) / np.sqrt(statistics['var'] + 1e-5)
    return y * layer['scale'] + layer['bias']

  features, pre_activations = [], []
  for part in range(3):
    tree = variables.params[part]
    if part == 0:
      y = conv(x, tree['stem']['kernel'])
    else:
      normalized = normalize(y, part, 'transition', 'norm')
      pre_activations.append(normalized)
      y = conv(np.maximum(normalized, 0), tree['transition']['conv']['kernel'])
      n, side, _, width = y.shape
      y = y.reshape(n, side // 2, 2, side // 2, 2, width).mean((2, 4))
    for unit in ('unit_0', 'unit_1'):
      z = np.maximum(normalize(y, part, unit, 'norm1'), 0)
      z = conv(z, tree[unit]['conv1']['kernel'])
      z = np.maximum(normalize(z, part, unit, 'norm2'), 0)
      z = conv(z, tree[unit]['conv2']['kernel'])
      y = np.concatenate([y, z], axis=-1)
    features.append(y)
  pre_activations.append(normalize(y, 3, 'norm'))
  pooled = np.maximum(pre_activations[-1], 0).mean((1, 2))
  classifier = variables.params[3]['classifier']

  expected = blocks.View(
    logits=pooled @ classifier['kernel'] + classifier['bias'],
    features=tuple(features),
    pre_activations=tuple(pre_activations),
    pooled=pooled,
  )
  tiny.close(view, expected, rtol=1e-4, atol=1e-4)
