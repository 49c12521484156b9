"""Vision transformers: against the papers' formulas in float64, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_layers
from scipy.special import erf

from cbkd_jax import blocks, compression, initialization, models
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGE_SHAPE = (8, 12, 3)  # 4x6 patches


def build(image_shape=IMAGE_SHAPE, dtype=jnp.float32, **changes):
  return tiny_layers.vit(
    num_classes=5,
    image_shape=image_shape,
    dtype=dtype,
    axis_name=None,
    **changes,
  )


def images(seed=3):
  random = np.random.default_rng(seed)
  return np.float32(random.normal(size=(2, *IMAGE_SHAPE)))


def run(network, variables, x):
  return jax.jit(lambda v, x: blocks.run(network, v, x)[0])(variables, x)


@pytest.mark.parametrize(
  ('name', 'expected'),
  # As timm prints those of vit_*_patch16_224.
  [
    ('vit_tiny', 5_717_416),
    ('vit_small', 22_050_664),
    ('vit_base', 86_567_656),
  ],
)
def test_published_param_count(name, expected):
  network = models.build(name, 1000, (224, 224, 3)).network()
  variables = blocks.shapes(network, (224, 224, 3))
  assert blocks.count_params(variables.params) == expected


@pytest.mark.parametrize(
  ('sides', 'patch', 'grid'),
  [
    ((8, 8), 2, (4, 4)),
    ((16, 16), 2, (8, 8)),
    ((28, 28), 4, (7, 7)),
    ((32, 40), 4, (8, 10)),
    ((64, 64), 8, (8, 8)),
    ((96, 96), 8, (12, 12)),
    ((128, 128), 16, (8, 8)),
    ((224, 224), 16, (14, 14)),
  ],
)
def test_patches(sides, patch, grid):
  architecture = models.build('vit_tiny', 7, (*sides, 3))
  assert architecture.widths == (192,) * 4
  assert architecture.units == (3,) * 4
  network = architecture.network()
  params = blocks.shapes(network, (*sides, 3)).params[0]
  assert params['patch_embed']['kernel'].shape == (patch, patch, 3, 192)
  assert params['pos_embed'].shape == (1, 1 + grid[0] * grid[1], 192)
  out = blocks.view_shapes(network, (*sides, 3), 2)
  assert [x.shape for x in out.features] == [(2, *grid, 192)] * 4
  assert out.pooled.shape == (2, 192)


@pytest.mark.parametrize(
  ('name', 'image_shape', 'message'),
  [
    ('vit_tiny', (9, 8, 1), r'\(9, 8, 1\): .* multiples of 2'),
    ('vit_base', (32, 30, 3), r'\(32, 30, 3\): .* multiples of 4'),
    ('vit_small', (224, 250, 3), r'\(224, 250, 3\): .* multiples of 16'),
  ],
)
def test_images_that_patches_do_not_fill(name, image_shape, message):
  with pytest.raises(UserError, match=f"model '{name}'.*{message}") as caught:
    models.build(name, 10, image_shape)
  assert '\n' not in str(caught.value)


def layer_norm(x, layer):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
  return x * layer['scale'] + layer['bias']


def dense(x, layer):
  return x @ layer['kernel'] + layer['bias']


def softmax(x):
  x = np.exp(x - x.max(-1, keepdims=True))
  return x / x.sum(-1, keepdims=True)


def gelu(x):
  return x * (1 + erf(x / np.sqrt(2))) / 2


def transformer_layer(x, layer, heads, size):
  """Vaswani et al., eq. 1, head by head; Dosovitskiy et al., eq. 2 and 3."""
  qkv = dense(layer_norm(x, layer['norm1']), layer['attention']['qkv'])
  width = heads * size
  mixed = []
  for head in range(heads):
    q, k, v = (
      qkv[..., i * width + head * size :][..., :size] for i in range(3)
    )
    mixed.append(softmax(q @ k.swapaxes(1, 2) / np.sqrt(size)) @ v)
  x = x + dense(np.concatenate(mixed, -1), layer['attention']['proj'])
  hidden = gelu(dense(layer_norm(x, layer['norm2']), layer['fc1']))
  return x + dense(hidden, layer['fc2'])


def embed(x, params, patch):
  kernel = params['patch_embed']['kernel'].reshape(-1, x.shape[-1], 12)
  patches = [
    np.einsum(
      'bpc,pcd->bd',
      x[:, i : i + patch, j : j + patch].reshape(2, patch**2, -1),
      kernel,
    )
    for i in range(0, x.shape[1], patch)
    for j in range(0, x.shape[2], patch)
  ]
  patches = np.stack(patches, 1) + params['patch_embed']['bias']
  token = np.repeat(params['cls_token'], 2, 0)
  return np.concatenate([token, patches], 1) + params['pos_embed']


def test_a_whole_network_against_the_formulas():
  network = build(units=(1, 2, 1)).network()
  variables = tiny.draw(network, IMAGE_SHAPE)
  x = images()
  *parts, head = run(network, variables, x)

  params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables.params)
  tokens = embed(np.float64(x), params[0], patch=2)
  for part, tree, units in zip(parts, params, (1, 2, 1)):
    for n in range(units):
      tokens = transformer_layer(tokens, tree[f'unit_{n}'], 4, 3)
    np.testing.assert_allclose(part.output, tokens, rtol=1e-5, atol=1e-5)
    # The map's rows are the image's.
    np.testing.assert_allclose(
      part.features[:, 1, 2], tokens[:, 1 + 1 * 6 + 2], rtol=1e-5, atol=1e-5
    )
  pooled = layer_norm(tokens[:, 0], params[-1]['norm'])
  logits = dense(pooled, params[-1]['classifier'])
  np.testing.assert_allclose(head.pooled, pooled, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(head.logits, logits, rtol=1e-5, atol=1e-5)
  assert logits.std() > 0.1


def test_bfloat16_computes_but_does_not_store():
  network = build(dtype=jnp.bfloat16).network()
  shapes = blocks.shapes(network, IMAGE_SHAPE)
  assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype('float32')}
  view = blocks.view_shapes(network, IMAGE_SHAPE, 2)
  assert {x.dtype for x in view.features} == {jnp.dtype('bfloat16')}
  assert view.logits.dtype == view.pooled.dtype == jnp.float32


def timm_names(layers):
  names = ['cls_token', 'pos_embed']
  modules = ['patch_embed.proj', 'norm', 'head']
  for i in range(layers):
    modules += [
      f'blocks.{i}.{layer}'
      for layer in (
        *('norm1', 'attn.qkv', 'attn.proj'),
        *('norm2', 'mlp.fc1', 'mlp.fc2'),
      )
    ]
  for module in modules:
    names += [f'{module}.weight', f'{module}.bias']
  return sorted(names)


def torch_names(architecture, image_shape, whose):
  """The names of all arrays in torch's code."""
  shapes = blocks.shapes(architecture.network(), image_shape)
  found = []
  for part, tree in enumerate(shapes.params):
    for path, _ in jax.tree.leaves_with_path(tree):
      *layer, leaf = (key.key for key in path)
      module = architecture.torch_names[whose](part, '/'.join(layer))
      leaf = {'kernel': 'weight', 'scale': 'weight'}.get(leaf, leaf)
      found.append(f'{module}.{leaf}' if module else leaf)
  return sorted(found)


def test_torch_names():
  architecture = models.build('vit_tiny', 10, (32, 32, 3))
  assert torch_names(architecture, (32, 32, 3), 'timm') == timm_names(12)


def compress(architecture, keep=(1, 0.5, 0.25), **changes):
  arguments = {'keep': keep, 'depth': (), 'inherit': 1} | changes
  return compression.compress(architecture, **arguments)


def test_student_blocks_are_narrower_inside():
  student = compress(build())
  assert student.widths == (12, 6, 3)
  assert student.inputs == (0, 0, 0)
  network = student.network(jnp.float32, folded=False)
  assert network == student.network(jnp.float32, folded=True)
  params = blocks.shapes(network, IMAGE_SHAPE).params
  shape = lambda i, *path: tiny_at(params[i], path)['kernel'].shape  # noqa: E731
  for i, heads, hidden in ((0, 4, 48), (1, 2, 24), (2, 1, 12)):
    assert shape(i, 'unit_0', 'attention', 'qkv') == (12, 3 * heads * 3)
    assert shape(i, 'unit_0', 'attention', 'proj') == (heads * 3, 12)
    assert shape(i, 'unit_0', 'fc1') == (12, hidden)
    assert shape(i, 'unit_0', 'fc2') == (hidden, 12)


def tiny_at(tree, path):
  for name in path:
    tree = tree[name]
  return tree


@pytest.mark.parametrize(
  ('name', 'keep', 'heads'),
  # Of 3, 6 and 12; halves are rounded up.
  [
    ('vit_tiny', 0.5, 2),
    ('vit_tiny', 0.34, 1),
    ('vit_small', 0.25, 2),
    ('vit_base', 0.5, 6),
    ('vit_base', 0.01, 1),
  ],
)
def test_heads_of_a_student_block(name, keep, heads):
  architecture = models.build(name, 10, (32, 32, 3))
  student = compress(architecture, (1, keep, keep, keep))
  block = student.network(jnp.float32, folded=True).blocks[1]
  assert block.heads == heads
  assert block.head_width == 64
  assert block.hidden == 4 * student.widths[1]


def test_any_subset_of_blocks_can_be_swapped():
  architecture = build()
  small = compress(architecture).network(jnp.float32, folded=False)
  teacher = architecture.network()
  expected = blocks.view_shapes(teacher, IMAGE_SHAPE, 2)
  for chosen in ((False, True, False), (True, False, True)):
    parts = tuple(
      s if c else t for s, t, c in zip(small.blocks, teacher.blocks, chosen)
    )
    hybrid = Network(parts, small.head)
    assert blocks.view_shapes(hybrid, IMAGE_SHAPE, 2) == expected


def slice_all(architecture, student, teacher, image_shape=IMAGE_SHAPE):
  """Every block but the first sliced; the first is the teacher's."""
  network = student.network(jnp.float32, folded=False)
  variables = tiny.draw(network, image_shape, seed=1)
  for index in range(1, len(student.widths)):
    variables = initialization.initialize_block(
      'slice',
      index,
      teacher=architecture,
      units=student.units[index],
      network=network,
      random=variables,
      teacher_network=architecture.network(),
      teacher_variables=teacher,
      images=None,
    )
  params = (teacher.params[0], *variables.params[1:])
  return network, Variables(params, variables.batch_stats)


def test_slice_at_full_width_is_the_teacher():
  architecture = build()
  teacher = tiny.draw(architecture.network(), IMAGE_SHAPE)
  _, found = slice_all(architecture, compress(architecture, (1, 1, 1)), teacher)
  assert tiny.same(found, teacher)


def test_slice_drops_what_has_no_effect():
  """What is small and leads nowhere: the student computes the same."""
  architecture = build()
  teacher = jax.tree.map(
    np.array, tiny.draw(architecture.network(), IMAGE_SHAPE)
  )
  dead = {1: (0, 3), 2: (0, 2, 3)}
  random = np.random.default_rng(4)
  for index, heads in dead.items():
    unit = teacher.params[index]['unit_0']
    qkv, proj = unit['attention']['qkv'], unit['attention']['proj']
    for head in heads:
      for copy in range(3):
        qkv['kernel'][:, copy * 12 + head * 3 :][:, :3] *= 0.1
      # One channel is large: it is as a whole that a head is small.
      qkv['kernel'][:, head * 3] *= 50
      proj['kernel'][head * 3 : head * 3 + 3] = 0
    hidden = random.permutation(48)[: 24 if index == 1 else 36]
    unit['fc1']['kernel'][:, hidden] *= 0.1
    unit['fc2']['kernel'][hidden] = 0
  network, variables = slice_all(architecture, compress(architecture), teacher)
  x = images()
  ours, theirs = (
    run(*pair, x)
    for pair in ((network, variables), (architecture.network(), teacher))
  )
  for one, two in zip(ours[:-1], theirs[:-1]):
    np.testing.assert_allclose(one.output, two.output, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(ours[-1].logits, theirs[-1].logits, atol=1e-5)


def test_wiring_lists_every_layer():
  architecture = build(units=(2, 2, 1))
  params = blocks.shapes(architecture.network(), IMAGE_SHAPE).params
  for i, units in enumerate((2, 2, 1, 0)):
    layers = {
      '/'.join(key.key for key in path[:-1])
      for path, _ in jax.tree.leaves_with_path(params[i])
    }
    # The embeddings' own arrays: block 0 is never cut.
    layers.discard('')
    assert {layer.path for layer in architecture.wiring(i, units)} == layers


def test_nothing_to_fold():
  network = compress(build()).network(jnp.float32, folded=False)
  variables = tiny.draw(network, IMAGE_SHAPE)
  assert tiny.same(compression.fold(variables, 1), variables)
