"""ShuffleNets: channels of narrower blocks, groups, and where a cut lies."""

import jax
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, models
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers, shufflenet


def test_shuffle_by_hand():
  x = np.arange(12).reshape(2, 6)
  shuffled = shufflenet.shuffle(x, 3)
  assert shuffled.tolist() == [[0, 2, 4, 1, 3, 5], [6, 8, 10, 7, 9, 11]]
  np.testing.assert_array_equal(shufflenet.shuffle(x, 1), x)


def v1_unit(inputs, mid, width, groups):
  """Three convolutions and their normalisations; groups of the 1x1 ones."""
  first, last = groups
  convs = inputs * mid // first + 9 * mid + mid * width // last
  return convs + 2 * (2 * mid + width)


def v2_unit(half):
  return half * half + 9 * half + half * half + 3 * 2 * half


def v2_strided_unit(inputs, half):
  left = 9 * inputs + 2 * inputs + inputs * half + 2 * half
  right = inputs * half + 2 * half + 9 * half + 2 * half + half**2 + 2 * half
  return left + right


@pytest.mark.parametrize(
  ('name', 'inputs', 'index', 'width', 'expected'),
  [
    # Half of everything: a strided unit makes 240 - 120 channels of its own.
    (
      'ShuffleV1',
      120,
      2,
      240,
      v1_unit(120, 30, 120, (3, 3)) + v1_unit(240, 60, 240, (3, 3)),
    ),
    # The stem's channels have no groups; here neither have 120 - 14 = 106, no
    # multiple of 3, nor their 26 inner ones.
    (
      'ShuffleV1',
      14,
      1,
      120,
      v1_unit(14, 26, 106, (1, 1)) + v1_unit(120, 30, 120, (3, 3)),
    ),
    ('ShuffleV2', 57, 2, 94, v2_strided_unit(57, 47) + v2_unit(47)),
  ],
)
def test_params_of_a_student_block_by_hand(
  name, inputs, index, width, expected
):
  block = models.build(name, 10, (32, 32, 3)).block(index, width, 2)
  variables, shape = blocks.part_shapes(block, (1, 8, 8, inputs))
  assert blocks.count_params(variables['params']) == expected
  assert shape == (1, 4, 4, width)


def test_v1_has_no_room_for_a_wide_input():
  block = models.build('ShuffleV1', 10, (32, 32, 3)).block(2, 24, 2)
  with pytest.raises(
    UserError, match='24 channels for an input of 21'
  ) as error:
    blocks.part_shapes(block, (1, 8, 8, 21))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['ShuffleV1', 'ShuffleV2'])
def test_features_are_activated_pre_activations(name):
  """Channel by channel, behind V2's shuffle too."""
  block = models.build(name, 10, (32, 32, 3)).block(1, 12, 2)
  network = blocks.Network((block,), layers.PoolingHead(2))
  variables = tiny.draw(network, (4, 4, 3))
  x = np.float32(np.random.default_rng(1).normal(size=(2, 4, 4, 3)))
  (out, _), _ = jax.jit(lambda v, x: blocks.run(network, v, x))(variables, x)
  pre_activation = np.asarray(out.pre_activation)
  assert np.any(pre_activation < 0)
  np.testing.assert_array_equal(out.features, np.maximum(pre_activation, 0))
  if name == 'ShuffleV2':  # What passed by is activated already.
    assert np.all(pre_activation[..., ::2] >= 0)
