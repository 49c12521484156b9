"""Running, cutting and viewing networks as tuples of parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, models
from cbkd_jax.blocks import BlockOutput, HeadOutput, Variables

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def network():
  return tiny.architecture().network()


@pytest.fixture(scope='module')
def x():
  random = np.random.default_rng(1)
  return jnp.asarray(random.normal(size=(4, *tiny.IMAGE_SHAPE)), jnp.float32)


def test_parts_in_order(network):
  assert network.parts == (*network.blocks, network.head)
  assert [b.width for b in network.blocks] == list(tiny.WIDTHS)


def test_run_in_two_halves_is_one_run(network, x):
  variables = tiny.draw(network)
  whole, _ = blocks.run(network, variables, x)
  shallow, _ = blocks.run(network, variables, x, stop=2)
  # The parts that are not run need no variables.
  deep_only = Variables(
    (None, None, *variables.params[2:]),
    (None, None, *variables.batch_stats[2:]),
  )
  deep, _ = blocks.run(network, deep_only, shallow[-1].output, start=2)
  assert len(shallow) == len(deep) == 2
  assert tiny.same(whole, [*shallow, *deep])
  np.testing.assert_array_equal(
    blocks.logits(network, variables, x), whole[-1].logits
  )


def test_only_parts_in_train_mode_move_their_statistics(network, x):
  variables = jax.tree.map(np.asarray, tiny.draw(network))
  train = (False, True, False, False)
  outputs, stats = blocks.run(network, variables, x, train=train)
  for i in (0, 2, 3):
    assert tiny.same(stats[i], variables.batch_stats[i])
  norm = stats[1]['unit_0']['norm']
  old = variables.batch_stats[1]['unit_0']['norm']
  # By hand: the convolution's output, its moments over batch and pixels.
  params = variables.params[1]['unit_0']
  y = jax.lax.conv_general_dilated(
    outputs[0].output,
    params['conv']['kernel'],
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  y = np.asarray(y, np.float64) + np.asarray(params['conv']['bias'])
  mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
  np.testing.assert_allclose(
    norm['mean'], 0.9 * old['mean'] + 0.1 * mean, rtol=1e-4, atol=1e-5
  )
  np.testing.assert_allclose(
    norm['var'], 0.9 * old['var'] + 0.1 * var, rtol=1e-4
  )
  expected = (y - mean) / np.sqrt(var + 1e-5)
  expected = expected * params['norm']['scale'] + params['norm']['bias']
  np.testing.assert_allclose(
    outputs[1].pre_activation, expected, rtol=1e-4, atol=1e-4
  )
  np.testing.assert_array_equal(
    outputs[1].features, np.maximum(outputs[1].pre_activation, 0)
  )


def test_eval_mode_uses_the_running_statistics(network, x):
  variables = tiny.draw(network)
  one, stats = blocks.run(network, variables, x)
  assert tiny.same(stats, variables.batch_stats)
  # An example's logits do not depend on its neighbours in the batch.
  alone, _ = blocks.run(network, variables, x[:1])
  np.testing.assert_allclose(
    alone[-1].logits, one[-1].logits[:1], rtol=1e-5, atol=1e-6
  )


def test_view():
  a, b, c, d = (jnp.full((1, 1, 1, 1), float(i)) for i in range(4))
  logits, pooled = jnp.ones((1, 3)), jnp.zeros((1, 1))
  seen = blocks.view(
    [
      BlockOutput(features=a, pre_activation=b, output=c),
      BlockOutput(features=c, pre_activation=a, output=d),
      HeadOutput(logits, pooled),
    ]
  )
  assert seen.logits is logits
  assert seen.pooled is pooled
  assert seen.features == (a, c)
  assert seen.pre_activations == (b, a)


def test_view_takes_the_next_parts_normalised_input():
  a, b, c, d = (jnp.full((1, 1, 1, 1), float(i)) for i in range(4))
  seen = blocks.view(
    [
      BlockOutput(a, a, a),
      BlockOutput(b, b, b, normalized_input=c),
      HeadOutput(jnp.ones((1, 3)), jnp.zeros((1, 1)), normalized_input=d),
    ]
  )
  assert seen.pre_activations == (c, d)


def test_init_of_a_part_does_not_depend_on_the_others():
  rng = jax.random.key(3)
  teacher = tiny.architecture()
  whole = blocks.init(teacher.network(), rng, tiny.IMAGE_SHAPE)
  hybrid = tiny.hybrid(teacher, (False, False, True))
  part = blocks.init(hybrid, rng, tiny.IMAGE_SHAPE, parts=(1, 3))
  assert part.params[0] is part.params[2] is None
  assert tiny.same(part.params[1], whole.params[1])
  # Another key, other values; parts differ from each other too.
  other = blocks.init(teacher.network(), jax.random.key(4), tiny.IMAGE_SHAPE)
  kernel = 'unit_0', 'conv', 'kernel'
  assert not tiny.same(
    *(v.params[1][kernel[0]][kernel[1]][kernel[2]] for v in (whole, other))
  )
  assert jax.tree.map(lambda x: (x.shape, x.dtype), whole) == jax.tree.map(
    lambda x: (x.shape, x.dtype),
    blocks.shapes(teacher.network(), tiny.IMAGE_SHAPE),
  )


def test_count_params_by_hand(network):
  # Kernel, bias, and the normalisation's scale and bias; the classifier.
  expected = sum(9 * a * b + 3 * b for a, b in ((1, 4), (4, 6), (6, 8)))
  shapes = blocks.shapes(network, tiny.IMAGE_SHAPE)
  assert blocks.count_params(shapes.params) == expected + 8 * 3 + 3
  assert blocks.count_params(shapes.batch_stats) == 2 * (4 + 6 + 8)


def test_bfloat16_keeps_statistics_and_logits_in_float32(x):
  network = tiny.architecture(dtype=jnp.bfloat16).network()
  variables = tiny.draw(network)
  run = jax.jit(blocks.run, static_argnames=('network', 'train'))
  outputs, stats = run(network, variables, x, train=(True,) * 4)
  assert outputs[0].features.dtype == jnp.bfloat16
  assert outputs[-1].logits.dtype == jnp.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {
    jnp.dtype(jnp.float32)
  }
  exact, _ = run(tiny.architecture().network(), variables, x, train=(True,) * 4)
  difference = outputs[-1].logits - exact[-1].logits
  assert 0 < np.abs(difference).max() < 0.1 * np.abs(exact[-1].logits).max()


def test_every_family_runs_cut_anywhere():
  """A pre-activation network's cuts lie before a normalisation."""
  network = models.build('wrn_10_1', 3, (8, 8, 3)).network()
  variables = tiny.draw(network, (8, 8, 3))
  x = np.float32(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  whole, _ = blocks.run(network, variables, x)
  seen = blocks.view(whole)
  for stop in (1, 2, 3):
    shallow, _ = blocks.run(network, variables, x, stop=stop)
    deep, _ = blocks.run(network, variables, shallow[-1].output, start=stop)
    assert tiny.same(blocks.view([*shallow, *deep]), seen)
