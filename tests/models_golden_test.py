"""Our families compute what the published networks do, weight for weight."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax import blocks, models

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGE_SHAPE = (32, 32, 3)
TOLERANCE = 1e-5  # of an array's largest entry
# Of gradients: sums over a batch's pixels, in another order on a GPU.
GRADIENT_TOLERANCE = 1e-5 if jax.default_backend() == 'cpu' else 3e-5

FILES = (
  'resnet8x4',
  'resnet32x4__recipe',
  'wrn_16_2',
  'vgg8__recipe',
  'MobileNetV2',
  'ShuffleV1',
  'ShuffleV2',
)
# Published lists of features start with the stem, which elsewhere is no cut.
STEM_IS_BLOCK = ('vgg8', 'ShuffleV1', 'ShuffleV2')
LINEAR_CUTS = ('MobileNetV2',)  # no activation, no list of pre-activations


def rebuilt_state(arrays):
  """The state dict that a `__recipe` file describes by a seed and shapes."""
  keys = [str(key) for key in arrays['meta_state_keys']]
  prefixes = {key.rsplit('.', 1)[0] for key in keys if 'running_mean' in key}
  state = {}
  for i, (key, sizes) in enumerate(zip(keys, arrays['meta_state_shapes'])):
    prefix, leaf = key.rsplit('.', 1)
    shape = tuple(int(size) for size in str(sizes).split(',') if size)
    random = np.random.RandomState(int(arrays['hp_recipe_seed']) + i)
    u = random.uniform(-1, 1, size=shape)
    if leaf == 'num_batches_tracked':
      continue
    if prefix in prefixes:
      offset = {'weight': 1, 'running_var': 1}.get(leaf, 0)
      scale = {'weight': 0.3, 'running_var': 0.4}.get(leaf, 0.2)
      value = offset + scale * u
    elif len(shape) >= 2:
      value = 0.5 * u * np.sqrt(6 / np.prod(shape[1:]))
    else:
      value = 0.1 * u
    state[key] = np.float32(value)
    np.testing.assert_allclose(
      np.sum(state[key], dtype=np.float64),
      arrays['state_sum_float64'][i],
      atol=1e-4,
    )
  return state


# Flax's last name to torch's; others are the same in both.
_TORCH_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}


def convert(torch_state, architecture, like):
  """A tree as `like`, `Variables` or a part of them, of torch's arrays.

  Exactly the arrays that the network would create; gradients convert alike.
  """
  unused = dict(torch_state)

  def take(path, leaf):
    part = next(key.idx for key in path if hasattr(key, 'idx'))
    *names, last = (key.key for key in path if hasattr(key, 'key'))
    name = architecture.torch_names['repdistiller'](part, '/'.join(names))
    value = unused.pop(f'{name}.{_TORCH_LEAVES.get(last, last)}')
    if value.ndim > 1:  # Output channels come first, input channels second.
      value = np.moveaxis(value, (0, 1), (-1, -2))
    assert value.shape == leaf.shape, path
    return value

  found = jax.tree.map_with_path(take, like)
  assert not unused
  return found


def load(file, prefix='state.'):
  arrays = golden.load(f'models/{file}')
  if file.endswith('__recipe'):
    return arrays, rebuilt_state(arrays)
  return arrays, {
    key.removeprefix(prefix): value
    for key, value in arrays.items()
    if key.startswith(prefix) and 'num_batches' not in key
  }


def assert_close(ours, theirs, tolerance=TOLERANCE):
  theirs = golden.to_nhwc(theirs)
  assert ours.shape == theirs.shape
  scale = np.max(np.abs(theirs))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def assert_trees_close(ours, theirs, tolerance=TOLERANCE):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, our), their in zip(
    jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs)
  ):
    assert our.shape == their.shape, path
    scale = np.max(np.abs(their))
    np.testing.assert_allclose(
      our, their, rtol=0, atol=tolerance * scale, err_msg=str(path)
    )


@pytest.mark.parametrize('file', FILES)
def test_eval_mode_agrees_with_published_network(file):
  arrays, state = load(file)
  name = file.removesuffix('__recipe')
  architecture = models.build(name, 100, IMAGE_SHAPE)
  network = architecture.network()
  variables = convert(state, architecture, blocks.shapes(network, IMAGE_SHAPE))

  view = jax.jit(lambda v, x: blocks.view(blocks.run(network, v, x)[0]))(
    variables, golden.to_nhwc(arrays['x'])
  )

  # The published float32 logits are themselves off by as much.
  exact = arrays['logits_float64']
  error = np.max(np.abs(arrays['logits'] - exact)) / np.max(np.abs(exact))
  tolerance = max(TOLERANCE, 2 * error)
  assert_close(view.logits, arrays['logits'], tolerance)
  # Published lists end with the pooled vector.
  first = 0 if name in STEM_IS_BLOCK else 1
  last = first + len(network.blocks)
  assert f'feat_{last + 1}' not in arrays
  assert_close(view.pooled, arrays[f'feat_{last}'], tolerance)
  for i in range(first, last):
    features, pre_activation = (
      maps[i - first] for maps in (view.features, view.pre_activations)
    )
    assert_close(features, arrays[f'feat_{i}'], tolerance)
    if f'preact_feat_{i}' in arrays:
      theirs = arrays[f'preact_feat_{i}']
      if name == 'ShuffleV2':  # Published in the order before the shuffle.
        halves = np.split(theirs, 2, axis=1)
        theirs = np.stack(halves, axis=2).reshape(theirs.shape)
      assert_close(pre_activation, theirs, tolerance)
    elif name in LINEAR_CUTS:
      np.testing.assert_array_equal(pre_activation, features)
  assert (f'preact_feat_{last - 1}' in arrays) == (name not in LINEAR_CUTS)


def test_train_step_agrees_with_published_network():
  arrays, state = load('resnet8__train_step')
  _, gradients = load('resnet8__train_step', 'grad_state.')
  _, after = load('resnet8__train_step', 'after_state.')
  architecture = models.build('resnet8', 100, IMAGE_SHAPE)
  network = architecture.network()
  parts = len(network.parts)
  variables = convert(state, architecture, blocks.shapes(network, IMAGE_SHAPE))

  def loss_fn(params, x, labels):
    outputs, batch_stats = blocks.run(
      network, variables._replace(params=params), x, train=(True,) * parts
    )
    logits = outputs[-1].logits
    log_probs = jax.nn.log_softmax(logits)
    loss = -jnp.mean(jnp.take_along_axis(log_probs, labels[:, None], axis=1))
    return loss, (logits, batch_stats)

  (loss, (logits, batch_stats)), grads = jax.jit(
    jax.value_and_grad(loss_fn, has_aux=True)
  )(variables.params, golden.to_nhwc(arrays['x']), arrays['labels'])

  np.testing.assert_allclose(loss, arrays['loss'], rtol=TOLERANCE)
  assert_close(logits, arrays['logits'])
  expected = convert(gradients, architecture, grads)
  assert_trees_close(grads, expected, GRADIENT_TOLERANCE)

  # Torch keeps the unbiased variance of the batch, flax the biased one.
  batch, height, width, _ = golden.to_nhwc(arrays['x']).shape
  sides = {0: 1, 1: 2, 2: 4}  # by how much each block shrinks its maps
  before = variables.batch_stats
  expected = convert(after, architecture, before)
  for part, shrink in sides.items():
    n = batch * height * width / shrink**2
    expected[part].update(
      jax.tree.map_with_path(
        lambda path, new, old, n=n: (
          0.9 * old + (new - 0.9 * old) * (n - 1) / n
          if path[-1].key == 'var'
          else new
        ),
        expected[part],
        before[part],
      )
    )
  assert_trees_close(batch_stats, expected)
