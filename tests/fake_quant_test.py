"""Rounding to 8 bits against numbers worked out by hand, and in a block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks
from cbkd_jax.blocks import Variables
from cbkd_jax.models import fake_quant, folded
from cbkd_jax.models.fake_quant import Quantized, round_input, round_kernel

pytestmark = pytest.mark.usefixtures('quick_compilation')


def rounded_by_numpy(kernel):
  """Per output channel, in float64."""
  kernel = np.asarray(kernel, np.float64)
  flat = kernel.reshape(-1, kernel.shape[-1])
  found = np.empty_like(flat)
  for channel, column in enumerate(flat.T):
    scale = np.abs(column).max() / 127
    found[:, channel] = np.round(column / scale) * scale
  return found.reshape(kernel.shape)


def inputs_by_numpy(x, low, high):
  x, low, high = np.float64(x), min(low, 0.0), max(high, 0.0)
  scale = (high - low) / 255
  zero = np.round(-low / scale)
  return (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale


def test_a_kernel_has_a_scale_per_output_channel():
  kernel = np.array(
    [[1.27, -0.2, 0.0], [0.014, 2.54, 0.0], [-0.636, 0.031, 0.0]], np.float32
  )
  found = round_kernel(kernel)
  # Scales 0.01 and 0.02; a channel of nothing stays nothing.
  expected = [[1.27, -0.2, 0], [0.01, 2.54, 0], [-0.64, 0.04, 0]]
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  random = np.random.default_rng(0).normal(size=(3, 3, 4, 5))
  found = round_kernel(random.astype(np.float32))
  np.testing.assert_allclose(found, rounded_by_numpy(random), rtol=1e-5)
  for channel in np.moveaxis(np.asarray(found), -1, 0):
    assert len(np.unique(np.abs(channel))) <= 128


def test_an_input_has_256_steps_and_an_exact_zero():
  x = np.array([-3, -1, -0.996, -0.004, 0, 0.006, 1.55, 9], np.float32)
  found = round_input(x, -1.0, 1.55)  # 0.01 a step
  expected = [-1, -1, -1, 0, 0, 0.01, 1.55, 1.55]
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
  # Nothing below 0, and a range that 0 is not in.
  found = round_input(np.float32([0, 0.5, 1.004, 2.55]), 0.5, 2.55)
  np.testing.assert_allclose(found, [0, 0.5, 1, 2.55], rtol=1e-5)
  assert not round_input(np.zeros(3, np.float32), 0.0, 0.0).any()
  assert round_input(jnp.zeros(3, jnp.bfloat16), 0.0, 1.0).dtype == jnp.bfloat16


def test_gradients_go_straight_through():
  random = np.random.default_rng(1).normal(size=(2, 6, 4)).astype(np.float32)
  x, weights = random

  def gradient(fn):
    return jax.grad(lambda x: jnp.sum(weights * fn(x)))(x)

  np.testing.assert_array_equal(gradient(round_kernel), weights)
  limited = gradient(lambda x: round_input(x, -0.1, 0.1))
  np.testing.assert_array_equal(limited, weights)
  # Of what follows, at the rounded number.
  squared = jax.grad(lambda x: jnp.sum(round_kernel(x) ** 2))(x)
  np.testing.assert_array_equal(squared, 2 * round_kernel(x))


def test_rounding_and_folding_commute():
  network = tiny.architecture().network()
  variables = tiny.draw(network)
  scales = variables.params[1]['unit_0']['norm']['scale']
  scales = scales * jnp.where(jnp.arange(len(scales)) % 2, 1, -1)
  variables.params[1]['unit_0']['norm']['scale'] = scales
  norms = folded.find(network, tiny.IMAGE_SHAPE)
  assert len(norms) == 3

  def rounded(variables):
    params = jax.tree.map_with_path(
      lambda path, leaf: (
        round_kernel(leaf) if path[-1].key == 'kernel' else leaf
      ),
      variables.params,
    )
    return Variables(params, variables.batch_stats)

  one = folded.fold(rounded(variables), norms).params
  other = rounded(folded.fold(variables, norms)).params
  for part in range(4):
    for (path, a), b in zip(
      jax.tree.leaves_with_path(one[part]), jax.tree.leaves(other[part])
    ):
      if path[-1].key == 'kernel':
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def conv_block():
  """A block of one convolution, its variables and an input."""
  block = tiny.architecture().network().blocks[2]
  shape = (4, 2, 2, 6)
  x = np.random.default_rng(2).normal(size=shape).astype(np.float32)
  variables = tiny.fill(blocks.part_shapes(block, (1, *shape[1:]))[0])
  return block, variables, x


def with_rounded_kernel(variables):
  unit = variables['params']['unit_0']
  kernel = rounded_by_numpy(unit['conv']['kernel']).astype(np.float32)
  params = {'unit_0': {**unit, 'conv': {**unit['conv'], 'kernel': kernel}}}
  return {**variables, 'params': params}


def test_a_block_trains_on_the_batchs_own_range():
  block, variables, x = conv_block()
  found = Quantized(block).apply(
    variables, x, train=True, mutable=['batch_stats']
  )
  expected = block.apply(
    with_rounded_kernel(variables),
    np.float32(inputs_by_numpy(x, x.min(), x.max())),
    train=True,
    mutable=['batch_stats'],
  )
  tiny.close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_block_is_evaluated_on_a_known_range_or_as_it_is():
  block, variables, x = conv_block()
  plain = block.apply(variables, x, train=False)
  assert tiny.same(Quantized(block).apply(variables, x, train=False), plain)
  ranges = (('unit_0/conv', -1.0, 1.2),)
  found = Quantized(block, ranges=ranges).apply(variables, x, train=False)
  expected = block.apply(
    with_rounded_kernel(variables),
    np.float32(inputs_by_numpy(x, -1.0, 1.2)),
    train=False,
  )
  tiny.close(found, expected, rtol=1e-4, atol=1e-5)
  assert np.abs(np.asarray(found.features - plain.features)).max() > 0.1


def test_what_a_layer_is_given_is_observed():
  block, variables, x = conv_block()
  out, found = fake_quant.Observed(block).apply(variables, x, train=False)
  assert tiny.same(out, block.apply(variables, x, train=False))
  assert {k: tuple(map(float, v)) for k, v in found.items()} == {
    'unit_0/conv': (x.min(), x.max())
  }
