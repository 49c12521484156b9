import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cbkd_jax import blocks, models
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers, resnet

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Trainable parameters for 32x32x3 images and 100 classes.
PARAMS = {
  'resnet8': 83_892,
  'resnet14': 181_108,
  'resnet20': 278_324,
  'resnet32': 472_756,
  'resnet44': 667_188,
  'resnet56': 861_620,
  'resnet110': 1_736_564,
  'resnet8x4': 1_233_540,
  'resnet32x4': 7_433_860,
  'resnet18': 11_220_132,
  'resnet34': 21_328_292,
  'resnet50': 23_705_252,
  'vgg8': 3_965_028,
  'vgg11': 9_277_284,
  'vgg13': 9_462_180,
  'vgg16': 14_774_436,
  'vgg19': 20_086_692,
  'wrn_16_1': 180_916,
  'wrn_16_2': 703_284,
  'wrn_16_4': 2_772_020,
  'wrn_28_2': 1_479_220,
  'wrn_28_10': 36_536_884,
  'wrn_40_1': 569_780,
  'wrn_40_2': 2_255_156,
  'wrn_40_4': 8_972_340,
  'MobileNetV2': 812_836,
  'mobilenet_v2': 2_351_972,
  'ShuffleV1': 949_258,
  'ShuffleV2': 1_355_528,
  'densenet_bc_40_12': 188_092,
  'densenet_bc_100_12': 800_032,
  'convnext_tiny': 27_892_708,
  'convnext_small': 49_527_268,
  'vit_tiny': 5_380_132,
  'vit_small': 21_376_996,
  'vit_base': 85_221_220,
}

ONE_PER_FAMILY = (
  'resnet8',
  'resnet18',
  'vgg8',
  'wrn_10_2',
  'densenet_bc_10_4',
)
# Of the other families; they take seconds to trace.
LARGE = ('mobilenet_v2', 'ShuffleV1', 'ShuffleV2')
# Elsewhere the head pools what the deepest block returns.
POOLED_WIDTHS = {'MobileNetV2': 1280, 'mobilenet_v2': 1280, 'ShuffleV2': 1024}


def abstract_outputs(network, image_shape, batch=2, train=False):
  """Shapes and dtypes of all parts' outputs and of the new batch_stats."""
  return jax.eval_shape(
    lambda v, x: blocks.run(network, v, x, train=(train,) * len(network.parts)),
    blocks.shapes(network, image_shape),
    jax.ShapeDtypeStruct((batch, *image_shape), jnp.float32),
  )


def random_variables(network, image_shape, seed=0):
  """Variables with no two entries alike, so that swapped ones show."""
  random = np.random.default_rng(seed)
  variables = blocks.shapes(network, image_shape)

  def draw(path, leaf):
    u = random.uniform(-1, 1, leaf.shape)
    if len(leaf.shape) > 1:
      u *= np.sqrt(3 / np.prod(leaf.shape[:-1]))
    elif path[-1].key in ('scale', 'var'):
      u = 1 + 0.3 * u
    return np.float32(u)

  return jax.tree.map_with_path(draw, variables)


def test_table_has_every_model():
  assert list(PARAMS) == models.known()


@pytest.mark.parametrize(('name', 'expected'), PARAMS.items())
def test_param_count(name, expected):
  network = models.build(name, 100, (32, 32, 3)).network()
  variables = blocks.shapes(network, (32, 32, 3))
  assert blocks.count_params(variables.params) == expected


@pytest.mark.parametrize(
  ('name', 'expected'),
  # As torchvision prints them.
  [
    ('resnet18', 11_689_512),
    ('resnet34', 21_797_672),
    ('resnet50', 25_557_032),
    ('mobilenet_v2', 3_504_872),
  ],
)
def test_param_count_at_imagenet_size(name, expected):
  network = models.build(name, 1000, (224, 224, 3)).network()
  variables = blocks.shapes(network, (224, 224, 3))
  assert blocks.count_params(variables.params) == expected


@pytest.mark.parametrize(
  ('name', 'side', 'features', 'outputs'),
  [
    ('resnet8', 32, (32, 16, 8), (32, 16, 8)),
    ('resnet8', 8, (8, 4, 2), (8, 4, 2)),
    ('resnet8', 9, (9, 5, 3), (9, 5, 3)),
    ('wrn_10_1', 32, (32, 16, 8), (32, 16, 8)),
    ('wrn_10_1', 8, (8, 4, 2), (8, 4, 2)),
    ('resnet18', 8, (8, 4, 2, 1), (8, 4, 2, 1)),
    ('resnet18', 32, (32, 16, 8, 4), (32, 16, 8, 4)),
    ('resnet18', 64, (32, 16, 8, 4), (32, 16, 8, 4)),
    ('resnet50', 224, (56, 28, 14, 7), (56, 28, 14, 7)),
    ('vgg8', 8, (8, 4, 4, 4, 4), (4, 4, 4, 4, 4)),
    ('vgg8', 16, (16, 8, 4, 4, 4), (8, 4, 4, 4, 4)),
    ('vgg8', 28, (28, 14, 7, 3, 3), (14, 7, 3, 3, 3)),
    ('vgg8', 32, (32, 16, 8, 4, 4), (16, 8, 4, 4, 4)),
    ('vgg8', 64, (64, 32, 16, 8, 4), (32, 16, 8, 4, 4)),
    ('MobileNetV2', 32, (16, 8, 4, 2), (16, 8, 4, 2)),
    # As the ImageNet ResNets.
    ('mobilenet_v2', 32, (32, 16, 8, 4), (32, 16, 8, 4)),
    ('mobilenet_v2', 64, (32, 16, 8, 4), (32, 16, 8, 4)),
    ('mobilenet_v2', 224, (56, 28, 14, 7), (56, 28, 14, 7)),
    ('ShuffleV1', 32, (32, 16, 8, 4), (32, 16, 8, 4)),
    ('ShuffleV2', 8, (8, 4, 2, 1), (8, 4, 2, 1)),
    ('densenet_bc_10_4', 32, (32, 16, 8), (32, 16, 8)),
  ],
)
def test_shapes_at_cuts(name, side, features, outputs):
  architecture = models.build(name, 7, (side, side, 3))
  network = architecture.network()
  (*parts, head), _ = abstract_outputs(network, (side, side, 3))
  assert len(parts) == len(architecture.widths) == len(architecture.units)
  for part, width, side_, pooled in zip(
    parts, architecture.widths, features, outputs
  ):
    assert part.features.shape == (2, side_, side_, width)
    assert part.pre_activation.shape == (2, side_, side_, width)
    assert part.output.shape == (2, pooled, pooled, width)
  assert head.logits.shape == (2, 7)
  pooled = POOLED_WIDTHS.get(name, architecture.widths[-1])
  assert head.pooled.shape == (2, pooled)


@pytest.mark.parametrize('name', ONE_PER_FAMILY)
def test_grey_and_oblong_images(name):
  image_shape = (8, 12, 1)
  network = models.build(name, 3, image_shape).network()
  outputs, _ = abstract_outputs(network, image_shape)
  assert outputs[0].features.shape[:3] == (2, 8, 12)
  assert outputs[-1].logits.shape == (2, 3)


@pytest.mark.parametrize('name', ONE_PER_FAMILY)
def test_bfloat16_computes_but_does_not_store(name):
  image_shape = (32, 32, 3)
  network = models.build(name, 10, image_shape, jnp.bfloat16).network()
  variables = blocks.shapes(network, image_shape)
  (*parts, head), batch_stats = abstract_outputs(
    network, image_shape, train=True
  )
  for part in parts:
    for array in part[:3]:
      assert array.dtype == jnp.bfloat16
  assert head.logits.dtype == jnp.float32
  for leaf in jax.tree.leaves((variables, batch_stats)):
    assert leaf.dtype == jnp.float32


@pytest.mark.parametrize('name', ['resnet8', 'vgg8', 'wrn_10_2'])
def test_axis_name_synchronises_every_norm(name):
  image_shape = (8, 8, 3)
  random = np.random.default_rng(1)
  x = np.float32(random.normal(size=(4, *image_shape)))

  def statistics(axis_name, x):
    network = models.build(name, 5, image_shape, axis_name=axis_name).network()
    variables = random_variables(network, image_shape)
    train = (True,) * len(network.parts)

    def run(x):
      return blocks.run(network, variables, x, train=train)[1]

    if x.ndim == 4:
      return jax.jit(run)(x)
    return jax.jit(jax.vmap(run, axis_name='batch'))(x)

  whole = statistics(None, x)
  halves = statistics('batch', x.reshape(2, 2, *image_shape))
  for one, two in zip(jax.tree.leaves(whole), jax.tree.leaves(halves)):
    for replica in two:
      np.testing.assert_allclose(replica, one, rtol=1e-3, atol=1e-4)


def test_without_axis_name_replicas_differ():
  image_shape = (8, 8, 3)
  network = models.build('resnet8', 5, image_shape).network()
  variables = random_variables(network, image_shape)
  x = np.float32(np.random.default_rng(1).normal(size=(2, 2, *image_shape)))
  run = functools.partial(blocks.run, network, variables, train=(True,) * 4)
  _, batch_stats = jax.jit(jax.vmap(run, axis_name='batch'))(x)
  mean = batch_stats[0]['stem']['norm']['mean']
  assert np.abs(mean[0] - mean[1]).max() > 1e-3


def narrow(name):
  """A network of the family with student widths behind its first block.

  Each width is another one, so that sets of channels differ in size.
  """
  architecture = models.build(name, 5, (16, 16, 3))
  widths = (architecture.widths[0], 12, 20, 28, 36)[: len(architecture.widths)]
  units = (min(architecture.units[0], 2), *[2] * (len(widths) - 1))
  network = blocks.Network(
    tuple(map(architecture.block, range(len(widths)), widths, units)),
    architecture.head(),
  )
  wiring = [architecture.wiring(i, n) for i, n in enumerate((*units, 0))]
  return network, wiring, widths


def layer_paths(params, prefix=''):
  """Paths of the layers: the nodes that hold arrays."""
  if any(not isinstance(child, dict) for child in params.values()):
    return [prefix.removesuffix('/')]
  return [
    path
    for key, child in params.items()
    for path in layer_paths(child, f'{prefix}{key}/')
  ]


def layer_at(tree, path):
  for key in path.split('/'):
    tree = tree[key]
  return tree


BY_DEPTHWISE = ('MobileNetV2', 'mobilenet_v2')
WIRED = (
  'resnet14',  # its stem needs no projection
  'resnet8x4',
  'resnet18',
  'resnet50',
  'vgg13',
  'wrn_16_1',  # likewise
  'wrn_16_2',
)


@pytest.mark.parametrize('name', [*WIRED, *BY_DEPTHWISE])
def test_wiring_lists_every_layer_with_consistent_sizes(name):
  network, wiring, widths = narrow(name)
  params = blocks.shapes(network, (16, 16, 3)).params
  for i, wires in enumerate(wiring):
    assert sorted(layer.path for layer in wires) == sorted(
      layer_paths(params[i])
    )
    sizes = {'input': (3, *widths)[i]}
    if i < len(widths):
      sizes['output'] = widths[i]
    for path, reads, writes, *_ in wires:
      layer = layer_at(params[i], path)
      is_norm = 'scale' in layer
      is_depthwise = name in BY_DEPTHWISE and path.endswith('conv2')
      assert (is_norm or is_depthwise) == (reads is None)
      assert ('classifier' in path) == (writes is None)
      if is_depthwise:
        assert layer['kernel'].shape[-2] == 1
      elif not is_norm:
        size = layer['kernel'].shape[-2]
        assert sizes.setdefault(reads, size) == size
      for leaf in layer.values():
        if writes is not None:
          size = leaf.shape[-1]
          assert sizes.setdefault(writes, size) == size


@pytest.mark.parametrize('name', [*WIRED, 'mobilenet_v2'])
def test_wiring_tells_which_channels_belong_together(name):
  """Renumbering the channels of every set changes nothing but their order."""
  network, wiring, _ = narrow(name)
  variables = random_variables(network, (16, 16, 3))
  random = np.random.default_rng(2)
  x = np.float32(random.normal(size=(2, 16, 16, 3)))
  order = random.permutation(3)
  renumbered_x = x[..., order]

  params, batch_stats, orders = [], [], []
  for i, wires in enumerate(wiring):
    sets = {'input': order}
    tree = jax.tree.map(np.copy, variables.params[i])
    stats = jax.tree.map(np.copy, variables.batch_stats[i])
    for path, reads, writes, *_ in wires:
      layer = layer_at(tree, path)
      if writes is not None and writes not in sets:
        size = next(iter(layer.values())).shape[-1]
        sets[writes] = random.permutation(size)
      if reads is not None:
        layer['kernel'] = layer['kernel'][..., sets[reads], :]
      for leaves in (layer, layer_at(stats, path) if 'scale' in layer else {}):
        for key in leaves if writes is not None else ():
          leaves[key] = leaves[key][..., sets[writes]]
    params.append(tree)
    batch_stats.append(stats)
    order = sets.get('output')
    orders.append(order)
  renumbered = blocks.Variables(tuple(params), tuple(batch_stats))

  run = jax.jit(lambda v, x: blocks.run(network, v, x)[0])
  ours, theirs = run(variables, x), run(renumbered, renumbered_x)
  for our, their, order in zip(ours[:-1], theirs[:-1], orders):
    scale = np.abs(our.output).max()
    np.testing.assert_allclose(
      their.output, our.output[..., order], rtol=0, atol=1e-4 * scale
    )
  np.testing.assert_allclose(
    theirs[-1].logits, ours[-1].logits, rtol=0, atol=1e-4
  )


def test_width_step():
  steps = {
    name: models.build(name, 10, (32, 32, 3)).width_step
    for name in (*ONE_PER_FAMILY, *LARGE, 'resnet50')
  }
  assert steps.pop('resnet50') == 4
  assert steps.pop('ShuffleV1') == 12  # a quarter of it in three groups
  assert steps.pop('ShuffleV2') == 2
  assert set(steps.values()) == {1}


def test_bottleneck_strides_in_its_3x3_convolution():
  unit = resnet.ResidualUnit(16, 2, (1, 3, 1))
  _, variables = jax.eval_shape(
    lambda x: unit.init_with_output(
      jax.random.key(0),
      x,
      train=False,
      mutable=True,
      capture_intermediates=True,
    ),
    jnp.zeros((1, 8, 8, 4)),
  )
  sides = {
    name: layer['__call__'][0].shape[1]
    for name, layer in variables['intermediates'].items()
    if 'conv' in name
  }
  assert sides == {'conv1': 8, 'conv2': 4, 'conv3': 4}


def test_initialisers():
  key = jax.random.key(0)
  kernel = layers.CONV_INIT(key, (3, 3, 32, 64))
  np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.03)
  kernel = layers.DENSE_INIT(key, (64, 100))
  assert 0.99 / 8 < np.max(np.abs(kernel)) <= 1 / 8


@pytest.mark.parametrize('name', [*LARGE, 'densenet_bc_10_4'])
def test_settings_of_every_layer(name):
  """Of the families that no test here compiles."""
  network = models.build(name, 10, (8, 8, 3), jnp.bfloat16, name).network()
  found = []

  def look(run, args, kwargs, context):
    if context.method_name == '__call__':
      found.append(context.module)
    return run(*args, **kwargs)

  with nn.intercept_methods(look):
    variables = blocks.shapes(network, (8, 8, 3))
  norms = [module for module in found if isinstance(module, nn.BatchNorm)]
  convs = [module for module in found if isinstance(module, nn.Conv)]
  assert len(norms) + len(convs) + 1 == sum(
    len(layer_paths(part)) for part in variables.params
  )
  for norm in norms:
    assert (norm.axis_name, norm.dtype) == (name, jnp.bfloat16)
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    assert norm.use_running_average
  for conv in convs:
    assert (conv.dtype, conv.use_bias) == (jnp.bfloat16, False)


def test_any_wide_resnet_is_built():
  architecture = models.build('wrn_22_3', 10, (32, 32, 3))
  assert architecture.widths == (48, 96, 192)
  assert architecture.units == (3, 3, 3)


@pytest.mark.parametrize(
  ('name', 'num_classes', 'image_shape', 'message'),
  [
    ('resnet9', 10, (32, 32, 3), "model 'resnet9' is not known; did you mean"),
    ('zzz', 10, (32, 32, 3), "model 'zzz' is not known; known: resnet8, "),
    ('wrn_17_2', 10, (32, 32, 3), 'depth 17 is not 6n'),
    ('wrn_4_2', 10, (32, 32, 3), 'depth 4 is not 6n'),
    ('wrn_16_0', 10, (32, 32, 3), 'widening factor 0 is not above 0'),
    ('densenet_bc_41_12', 10, (32, 32, 3), 'depth 41 is not 6n'),
    ('densenet_bc_40_0', 10, (32, 32, 3), 'growth 0 is not above 0'),
    ('resnet8', 10, (7, 32, 3), r'\(7, 32, 3\) .* 7 pixels; at least 8'),
    ('vgg8', 10, (32, 32, 4), r'\(32, 32, 4\) has 4 channels; 1 or 3'),
    ('vgg8', 10, (32, 32), r'\(32, 32\) is not \(height, width, channels\)'),
    ('vgg8', 0, (32, 32, 3), '0 classes; at least 1'),
    ('no_such_package.x:f', 10, (32, 32, 3), "no module 'no_such_package'"),
    ('json:', 10, (32, 32, 3), "module 'json' has no function ''"),
    ('json:nothing', 10, (32, 32, 3), "has no function 'nothing'"),
    ('json:loads', 10, (32, 32, 3), 'missing a required argument'),
    (':f', 10, (32, 32, 3), "'' is not a module's name"),
    ('./models.py:f', 10, (32, 32, 3), "is not a module's name"),
  ],
)
def test_errors(name, num_classes, image_shape, message):
  with pytest.raises(UserError, match=message) as caught:
    models.build(name, num_classes, image_shape)
  assert '\n' not in str(caught.value)


OWN_MODULE = """
from cbkd_jax import models

calls = []

def blocks(*, num_classes, image_shape, dtype, axis_name):
  calls.append((num_classes, image_shape, dtype, axis_name))
  return models.build('resnet8', num_classes, image_shape, dtype, axis_name)

def wrong(**arguments):
  return 'resnet8'
"""


def test_own_model(tmp_path, monkeypatch):
  (tmp_path / 'own_models.py').write_text(OWN_MODULE)
  (tmp_path / 'own_broken.py').write_text('import no_such_dependency')
  monkeypatch.syspath_prepend(tmp_path)

  architecture = models.build(
    'own_models:blocks', 10, [16, 16, 1], jnp.bfloat16, 'batch'
  )
  assert architecture.widths == (16, 32, 64)
  import own_models

  assert own_models.calls == [(10, (16, 16, 1), jnp.bfloat16, 'batch')]

  with pytest.raises(UserError, match='returned str, not an Architecture'):
    models.build('own_models:wrong', 10, (16, 16, 1))
  with pytest.raises(UserError, match="no module 'no_such_dependency'"):
    models.build('own_broken:f', 10, (16, 16, 1))
