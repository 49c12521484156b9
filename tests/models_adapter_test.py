import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cbkd_jax import blocks, models
from cbkd_jax.models.adapter import Adapted

X = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 6)))


def vgg_block():
  block = models.build('vgg8', 10, (32, 32, 3)).block(1, 8, 1)
  assert block.pool
  return block


def wrn_block():
  return models.build('wrn_16_2', 10, (32, 32, 3)).block(1, 8, 1)


def draw(shapes):
  """Variables of the given shapes, biases not zero.

  NumPy draws them: compiling JAX's generators takes seconds.
  """
  random = np.random.default_rng(1)
  # 0.1 to 1 suits a variance too; half of the weights get a negative sign.
  return jax.tree.map_with_path(
    lambda path, leaf: np.float32(
      random.uniform(0.1, 1, leaf.shape)
      * (1 if path[-1].key == 'var' else random.choice((-1, 1), leaf.shape))
    ),
    shapes,
  )


def init(module):
  init_fn = functools.partial(module.init, train=False)
  return draw(jax.eval_shape(init_fn, jax.random.key(0), X))


def run(module):
  variables = init(module)
  out = jax.jit(functools.partial(module.apply, train=False))(variables, X)
  return out, variables['params']


def pointwise(x, params):
  y = np.einsum('bhwc,cd->bhwd', x, params['kernel'][0, 0])
  return y + params['bias']


def test_params():
  params = init(Adapted(vgg_block(), reduce=4, expand=16))['params']
  assert jax.tree.map(jnp.shape, params) == {
    'reduce': {'kernel': (1, 1, 6, 4), 'bias': (4,)},
    'inner': {
      'unit_0': {
        'conv': {'kernel': (3, 3, 4, 8), 'bias': (8,)},
        'norm': {'scale': (8,), 'bias': (8,)},
      }
    },
    'expand': {'kernel': (1, 1, 8, 16), 'bias': (16,)},
  }


@pytest.mark.parametrize('make', [vgg_block, wrn_block])
def test_is_inner_block_between_two_affine_maps(make):
  adapted = Adapted(make(), reduce=4, expand=16)
  variables = init(adapted)
  out, params = run(adapted)

  inner = jax.jit(functools.partial(make().apply, train=False))(
    {
      'params': params['inner'],
      'batch_stats': variables['batch_stats']['inner'],
    },
    pointwise(X, params['reduce']),
  )
  expected = pointwise(inner.features, params['expand'])
  np.testing.assert_allclose(out.features, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(out.pre_activation, out.features)
  expected = pointwise(inner.output, params['expand'])
  np.testing.assert_allclose(out.output, expected, rtol=1e-5, atol=1e-5)
  assert out.normalized_input is None


def test_pools_before_it_expands():
  out, _ = run(Adapted(vgg_block(), expand=16))
  assert out.features.shape == (2, 8, 8, 16)
  assert out.output.shape == (2, 4, 4, 16)
  # Pooling the expanded map would be another function.
  pooled_after = nn.max_pool(out.features, (2, 2), (2, 2))
  assert np.abs(out.output - pooled_after).max() > 1e-2


def test_expands_once_where_no_pooling_follows():
  module = Adapted(wrn_block(), expand=16)
  jaxpr = jax.make_jaxpr(functools.partial(module.apply, train=False))(
    init(module), X
  )
  # Two convolutions and a projection in the unit, and one that expands.
  assert str(jaxpr).count('conv_general_dilated[') == 4


def test_without_expand_the_inner_activations_stay():
  out, params = run(Adapted(vgg_block(), reduce=4))
  assert set(params) == {'reduce', 'inner'}
  np.testing.assert_array_equal(out.features, nn.relu(out.pre_activation))
  assert np.min(out.pre_activation) < 0


def test_normalized_input_is_kept_only_where_it_is_the_blocks_own():
  out, params = run(Adapted(wrn_block(), expand=16))
  assert set(params) == {'inner', 'expand'}
  assert out.normalized_input.shape == X.shape
  out, _ = run(Adapted(wrn_block(), reduce=4))
  assert out.normalized_input is None


def test_fits_into_a_network_and_trains():
  """A hybrid: one block of the teacher replaced by an adapted one."""
  architecture = models.build('wrn_16_2', 10, (8, 8, 3))
  first, _, last = architecture.network().blocks
  hybrid = blocks.Network(
    (first, Adapted(architecture.block(1, 16, 1), 16, 64), last),
    architecture.head(),
  )
  variables = draw(blocks.shapes(hybrid, (8, 8, 3)))
  x = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  outputs, batch_stats = jax.jit(
    lambda v, x: blocks.run(hybrid, v, x, train=(False, True, False, False))
  )(variables, x)
  assert outputs[1].output.shape == (2, 4, 4, 64)
  view = blocks.view(outputs)
  # Its reduced input hides the cut's normalised view, so the bare one is used.
  np.testing.assert_array_equal(view.pre_activations[0], view.features[0])
  before, after = variables.batch_stats, batch_stats
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, before, after)
  assert all(jax.tree.leaves(moved[1]))
  assert not any(jax.tree.leaves((moved[0], *moved[2:])))


def test_bfloat16():
  block = models.build('vgg8', 10, (32, 32, 3), jnp.bfloat16).block(1, 8, 1)
  out, params = run(Adapted(block, 4, 16, jnp.bfloat16))
  assert out.output.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype('float32')
  }
