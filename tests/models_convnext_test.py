"""ConvNeXt: against the paper's formulas in float64, and by hand."""

import jax
import jax.numpy as jnp
import models_vit_test
import numpy as np
import pytest
import tiny
import tiny_layers
from models_vit_test import dense, gelu, layer_norm

from cbkd_jax import blocks, compression, models

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGE_SHAPE = (9, 12, 3)


def build(dtype=jnp.float32, **changes):
  return tiny_layers.convnext(
    num_classes=5,
    image_shape=IMAGE_SHAPE,
    dtype=dtype,
    axis_name=None,
    **changes,
  )


@pytest.mark.parametrize(
  ('name', 'expected'),
  # As torchvision prints them.
  [('convnext_tiny', 28_589_128), ('convnext_small', 50_223_688)],
)
def test_published_param_count(name, expected):
  network = models.build(name, 1000, (224, 224, 3)).network()
  variables = blocks.shapes(network, (224, 224, 3))
  assert blocks.count_params(variables.params) == expected


@pytest.mark.parametrize(
  ('sides', 'patch', 'features'),
  [
    ((8, 8), 1, ((8, 8), (4, 4), (2, 2), (1, 1))),
    ((28, 36), 1, ((28, 36), (14, 18), (7, 9), (3, 4))),
    ((64, 64), 2, ((32, 32), (16, 16), (8, 8), (4, 4))),
    ((224, 224), 4, ((56, 56), (28, 28), (14, 14), (7, 7))),
  ],
)
def test_patches(sides, patch, features):
  architecture = models.build('convnext_tiny', 7, (*sides, 3))
  assert architecture.widths == (96, 192, 384, 768)
  assert architecture.units == (3, 3, 9, 3)
  network = architecture.network()
  params = blocks.shapes(network, (*sides, 3)).params[0]
  assert params['stem']['conv']['kernel'].shape == (patch, patch, 3, 96)
  out = blocks.view_shapes(network, (*sides, 3), 2)
  assert [x.shape[1:] for x in out.features] == [
    (*side, width) for side, width in zip(features, architecture.widths)
  ]


def depthwise(x, layer):
  height, width = x.shape[1:3]
  padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
  total = np.zeros_like(x)
  for i in range(7):
    for j in range(7):
      shifted = padded[:, i : i + height, j : j + width]
      total += shifted * layer['kernel'][i, j, 0]
  return total + layer['bias']


def convnext_layer(x, layer):
  """Liu et al., figure 4, with the authors' layer scale."""
  y = layer_norm(depthwise(x, layer['depthwise']), layer['norm'])
  y = dense(gelu(dense(y, layer['fc1'])), layer['fc2'])
  return x + layer['layer_scale']['gamma'] * y


def patches(x, layer, patch):
  """A convolution whose stride is its kernel's side."""
  height, width = (side // patch for side in x.shape[1:3])
  total = 0
  for i in range(patch):
    for j in range(patch):
      taken = x[:, i::patch, j::patch][:, :height, :width]
      total = total + taken @ layer['kernel'][i, j]
  return total + layer['bias']


def test_a_whole_network_against_the_formulas():
  network = build(units=(1, 2, 1)).network()
  variables = tiny.draw(network, IMAGE_SHAPE)
  random = np.random.default_rng(3)
  x = np.float32(random.normal(size=(2, *IMAGE_SHAPE)))
  *parts, head = models_vit_test.run(network, variables, x)

  params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables.params)
  x = np.float64(x)
  for i, (part, tree, units) in enumerate(zip(parts, params, (1, 2, 1))):
    if i == 0:
      x = patches(x, tree['stem']['conv'], 1)
      x = layer_norm(x, tree['stem']['norm'])
    else:  # 9x12 -> 4x6 -> 2x3
      x = layer_norm(x, tree['down']['norm'])
      x = patches(x, tree['down']['conv'], 2)
    for n in range(units):
      x = convnext_layer(x, tree[f'unit_{n}'])
    np.testing.assert_allclose(part.output, x, rtol=1e-5, atol=1e-5)
  pooled = layer_norm(x.mean((1, 2)), params[-1]['norm'])
  logits = dense(pooled, params[-1]['classifier'])
  np.testing.assert_allclose(head.pooled, pooled, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(head.logits, logits, rtol=1e-5, atol=1e-5)
  assert logits.std() > 0.1


def test_it_starts_as_published():
  """Each layer adds a millionth of what it computes."""
  block = build(widths=(32, 6, 8)).block(0, 32, 1)
  params = block.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False)
  unit = params['params']['unit_0']
  np.testing.assert_array_equal(unit['layer_scale']['gamma'], np.float32(1e-6))
  np.testing.assert_allclose(np.std(unit['fc1']['kernel']), 0.02, rtol=0.05)
  assert not np.any(unit['fc1']['bias'])


def test_bfloat16_computes_but_does_not_store():
  network = build(jnp.bfloat16).network()
  shapes = blocks.shapes(network, IMAGE_SHAPE)
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  view = blocks.view_shapes(network, IMAGE_SHAPE, 2)
  assert {x.dtype for x in view.features} == {jnp.dtype('bfloat16')}
  assert view.logits.dtype == view.pooled.dtype == jnp.float32


UNITS = (3, 3, 9, 3)


def expected_names(layers, stem, down, norm, head):
  modules = [*stem, norm, head]
  names = []
  for i, units in enumerate(UNITS):
    modules += [name.format(i) for name in down] if i else []
    for n in range(units):
      modules += [layer.format(i, n) for layer in layers[:-1]]
      names.append(layers[-1].format(i, n))
  for module in modules:
    names += [f'{module}.weight', f'{module}.bias']
  return sorted(names)


FACEBOOK = expected_names(
  [
    f'stages.{{}}.{{}}.{name}'
    for name in ('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma')
  ],
  ('downsample_layers.0.0', 'downsample_layers.0.1'),
  ('downsample_layers.{}.0', 'downsample_layers.{}.1'),
  'norm',
  'head',
)
TIMM = expected_names(
  [
    f'stages.{{}}.blocks.{{}}.{name}'
    for name in ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma')
  ],
  ('stem.0', 'stem.1'),
  ('stages.{}.downsample.0', 'stages.{}.downsample.1'),
  'head.norm',
  'head.fc',
)


@pytest.mark.parametrize(
  ('whose', 'expected'), [('facebook', FACEBOOK), ('timm', TIMM)]
)
def test_torch_names(whose, expected):
  architecture = models.build('convnext_tiny', 10, (32, 32, 3))
  found = models_vit_test.torch_names(architecture, (32, 32, 3), whose)
  assert found == expected


def test_torch_names_tell_norm_and_convolution_apart():
  """Which comes first: the stem's convolution, a down-sampling's norm."""
  names = models.build('convnext_tiny', 10, (32, 32, 3)).torch_names
  assert names['facebook'](0, 'stem/conv') == 'downsample_layers.0.0'
  assert names['facebook'](2, 'down/norm') == 'downsample_layers.2.0'
  assert names['timm'](0, 'stem/norm') == 'stem.1'
  assert names['timm'](2, 'down/conv') == 'stages.2.downsample.1'


def sliced(keep):
  architecture = build(units=(1, 2, 1))
  student = compression.compress(
    architecture, keep=(1, keep, keep), depth=(), inherit=1
  )
  teacher = tiny.draw(architecture.network(), IMAGE_SHAPE)
  network, variables = models_vit_test.slice_all(
    architecture, student, teacher, IMAGE_SHAPE
  )
  return (network, variables), (architecture.network(), teacher)


def test_slice_at_full_width_is_the_teacher():
  ours, theirs = sliced(1)
  for index in (1, 2):
    assert tiny.same(ours[1].params[index]['inner'], theirs[1].params[index])
  assert tiny.same(ours[1].params[3], theirs[1].params[3])


def test_slice_cuts_every_layer():
  """By hand, for block 1 of 4 -> 6 channels, half of each kept."""
  ours, theirs = sliced(0.5)
  old = jax.tree.map(np.asarray, theirs[1].params[1])
  new = ours[1].params[1]
  rows = np.abs(old['down']['conv']['kernel']).sum((0, 1, 3))
  rows = np.sort(np.argsort(-rows)[:2])
  scales = sum(np.abs(old[f'unit_{n}']['norm']['scale']) for n in range(2))
  kept = np.sort(np.argsort(-scales)[:3])
  np.testing.assert_array_equal(new['reduce']['kernel'][0, 0].argmax(0), rows)
  inner = new['inner']
  np.testing.assert_array_equal(
    inner['down']['norm']['scale'], old['down']['norm']['scale'][rows]
  )
  np.testing.assert_array_equal(
    inner['down']['conv']['kernel'],
    old['down']['conv']['kernel'][:, :, rows][..., kept],
  )
  for n in range(2):
    unit, source = inner[f'unit_{n}'], old[f'unit_{n}']
    mid = np.abs(source['fc1']['kernel']).sum(0)
    mid = np.sort(np.argsort(-mid)[:12])
    expected = {
      'depthwise': {
        'kernel': source['depthwise']['kernel'][..., kept],
        'bias': source['depthwise']['bias'][kept],
      },
      'norm': {k: source['norm'][k][kept] for k in ('scale', 'bias')},
      'fc1': {
        'kernel': source['fc1']['kernel'][kept][:, mid],
        'bias': source['fc1']['bias'][mid],
      },
      'fc2': {
        'kernel': source['fc2']['kernel'][mid][:, kept],
        'bias': source['fc2']['bias'][kept],
      },
      'layer_scale': {'gamma': source['layer_scale']['gamma'][kept]},
    }
    assert tiny.same(unit, jax.tree.map(jnp.asarray, expected))


def test_wiring_lists_every_layer():
  architecture = build(units=(2, 2, 1))
  params = blocks.shapes(architecture.network(), IMAGE_SHAPE).params
  for i, units in enumerate((2, 2, 1, 0)):
    layers = {
      '/'.join(key.key for key in path[:-1])
      for path, _ in jax.tree.leaves_with_path(params[i])
    }
    assert {layer.path for layer in architecture.wiring(i, units)} == layers
