"""Normalisations in kernels and biases: the same function, family by family."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import linen as nn

from cbkd_jax import blocks, models
from cbkd_jax.blocks import BlockOutput, Network
from cbkd_jax.models import folded, layers
from cbkd_jax.models.adapter import Adapted

pytestmark = pytest.mark.usefixtures('quick_compilation')


def block_of(name: str, index: int, units: int, reduce: int | None = None):
  """One block of a family and its head."""
  family = models.build(name, 10, (32, 32, 3))
  block = family.block(index, family.widths[index], units)
  if reduce is not None:
    block = Adapted(block, reduce=reduce, dtype=jnp.float32)
  return Network((block,), family.head())


def whole(name: str):
  return models.build(name, 10, (8, 8, 3)).network()


# A network, its images, how many normalisations are folded, and those that
# follow a sum, a concatenation, or what another layer reads, too.
CASES = {
  'resnet': (lambda: block_of('resnet8', 1, 1), (4, 4, 6), 3, []),
  'vgg': (lambda: block_of('vgg8', 1, 1), (4, 4, 6), 1, []),
  # Its first unit adds what the stem gives: nothing may be done to that.
  'wrn': (
    lambda: whole('wrn_10_1'),
    (8, 8, 3),
    3,
    ['0:unit_0/norm1', '1:unit_0/norm1', '2:unit_0/norm1', '3:norm'],
  ),
  # The adapter alone is in front of its first normalisation.
  'wrn student': (
    lambda: block_of('wrn_10_1', 1, 1, reduce=5),
    (4, 4, 6),
    2,
    ['1:norm'],
  ),
  'densenet': (
    lambda: block_of('densenet_bc_10_3', 1, 1),
    (4, 4, 6),
    1,
    ['0:transition/norm', '0:unit_0/norm1', '1:norm'],
  ),
  # Depthwise convolutions among them; the last is the head's.
  'MobileNetV2': (lambda: block_of('MobileNetV2', 1, 1), (4, 4, 6), 4, []),
  # Grouped and shuffled.
  'ShuffleV1': (lambda: block_of('ShuffleV1', 1, 1), (4, 4, 24), 3, []),
  'ShuffleV2': (lambda: block_of('ShuffleV2', 1, 1), (4, 4, 12), 6, []),
}


def both(network, variables, image_shape):
  """Logits with and without folding, of the same random images."""
  norms = folded.find(network, image_shape)
  images = np.random.default_rng(0).normal(size=(2, *image_shape))
  x = images.astype(np.float32)
  own = jax.jit(functools.partial(blocks.logits, network))
  without = jax.jit(functools.partial(folded.logits, network, norms))
  return own(variables, x), without(folded.fold(variables, norms), x), norms


@pytest.mark.parametrize('family', CASES)
def test_the_same_function_without_batch_statistics(family):
  build, image_shape, count, left = CASES[family]
  network = build()
  variables = tiny.draw(network, image_shape)
  before, after, norms = both(network, variables, image_shape)
  places = [f'{n.place[0]}:{n.place[1]}' for n in norms if n.into is None]
  assert len(norms) - len(places) == count
  assert places == left
  assert len(norms) == len(jax.tree.leaves(variables.batch_stats)) / 2
  scale = float(np.abs(before).max())
  np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * scale)
  params, batch_stats = folded.fold(variables, norms)
  assert not jax.tree.leaves(batch_stats)
  named = jax.tree.leaves_with_path(params)
  assert sum('scale' in str(path[-1]) for path, _ in named) == len(left)


def test_by_hand():
  """One convolution and its normalisation, in float64."""
  network = block_of('wrn_10_1', 1, 1, reduce=5)
  variables = jax.tree.map(np.asarray, tiny.draw(network, (4, 4, 6)))
  norm = folded.Norm((0, 'inner/unit_0/norm1'), 0.25, (0, 'reduce'))
  params, _ = folded.fold(variables, [norm])
  own, stats = (
    tree[0]['inner']['unit_0']['norm1']
    for tree in (variables.params, variables.batch_stats)
  )
  reduce = variables.params[0]['reduce']
  scale = np.float64(own['scale']) / np.sqrt(np.float64(stats['var']) + 0.25)
  np.testing.assert_allclose(
    params[0]['reduce']['kernel'], reduce['kernel'] * scale, rtol=1e-6
  )
  np.testing.assert_allclose(
    params[0]['reduce']['bias'],
    (reduce['bias'] - np.float64(stats['mean'])) * scale + own['bias'],
    rtol=1e-5,
    atol=1e-7,
  )
  assert 'norm1' not in params[0]['inner']['unit_0']
  assert 'norm1' in variables.params[0]['inner']['unit_0']  # a copy was changed


class Unusual(nn.Module):
  """What must not be folded, one thing after the other.

  A layer that is called twice; an output that is reshaped; a normalisation over
  another axis; one that is called twice; one that is called by keyword. Before
  these two one that has neither scale nor bias, and is folded.
  """

  @nn.compact
  def __call__(self, x, train):
    norm = functools.partial(
      layers.batch_norm, train, dtype=None, axis_name=None
    )
    shared = nn.Conv(4, (1, 1), name='shared')
    x = norm(name='once')(shared(x))
    x = norm(name='again')(shared(x))
    x = nn.Conv(4, (1, 1), name='conv1')(x)
    x = norm(name='reshaped')(x.reshape(x.shape[0], -1, 8)).reshape(x.shape)
    x = nn.Conv(4, (1, 1), name='conv2')(x)
    x = nn.BatchNorm(True, axis=1, name='rows')(x)
    x = nn.Conv(4, (1, 1), name='conv3')(x)
    x = nn.BatchNorm(True, use_bias=False, use_scale=False, name='bare')(x)
    twice = norm(name='twice')
    for name in 'conv4', 'conv5':
      x = twice(nn.Conv(4, (1, 1), name=name)(x))
    x = norm(name='named')(x=nn.Conv(4, (1, 1), name='conv6')(x))
    return BlockOutput(x, x, x)


def test_what_can_not_be_folded_stays():
  network = Network((Unusual(),), layers.PoolingHead(3))
  image_shape = (4, 4, 4)
  variables = tiny.draw(network, image_shape)
  before, after, norms = both(network, variables, image_shape)
  assert {n.place[1]: n.into and n.into[1] for n in norms} == {
    'once': None,
    'again': None,
    'reshaped': None,
    'bare': 'conv3',
    'twice': None,
  }
  np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)
  params, batch_stats = folded.fold(variables, norms)
  assert set(batch_stats[0]) == {'rows', 'named'}
  assert set(params[0]) == {
    *('shared', 'once', 'again', 'conv1', 'reshaped', 'conv2', 'rows', 'conv3'),
    *('conv4', 'conv5', 'twice', 'conv6', 'named'),
  }


@pytest.mark.thorough
def test_the_documents_table():
  """How many of whole networks are folded, and how many stay."""
  text = (Path(__file__).parent.parent / 'docs' / 'export.md').read_text()
  _, _, table = text.partition('| whole networks |')
  rows = [line for line in table.partition('\n\n')[0].splitlines()[2:]]
  assert len(rows) == 7
  for row in rows:
    names, total, folded_, left = (c.strip() for c in row.split('|')[1:-1])
    names = [name.strip('` ') for name in names.split(',')]
    totals = [int(n) for n in total.split(',')] * len(names)
    for name, count in zip(names, totals):
      side = 64 if name == 'vit_tiny' else 32
      shape = (side, side, 3)
      norms = folded.find(models.build(name, 10, shape).network(), shape)
      merged = sum(norm.into is not None for norm in norms)
      assert len(norms) == count
      assert merged == (count if folded_ == 'all' else int(folded_ or 0))
      assert count - merged == int(left or 0)
