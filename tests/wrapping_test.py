"""Students of another family than the teacher's."""

import jax
import jax.numpy as jnp
import method_runs
import numpy as np
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import (
  blocks,
  compression,
  experiment,
  initialization,
  models,
  wrapping,
)
from cbkd_jax.blocks import Network
from cbkd_jax.data import digits
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers
from cbkd_jax.models.adapter import Adapted

pytestmark = pytest.mark.usefixtures('quick_compilation')

OTHER = {
  'compression__model': 'tiny_run:other',
  'compression__init': 'random',
  'compression__keep': (1.0, 0.5, 0.25),
}


def square(*sides):
  return [(side, side) for side in sides]


@pytest.mark.parametrize(
  ('ours', 'cuts', 'expected'),
  [
    # One block each; what comes after the last cut is the deepest one's.
    ([32, 16, 8], [32, 16], [0, 1]),
    ([32, 16, 8, 4], [32, 16], [0, 1]),
    # The last one of several, and the larger ones in front are left out.
    ([32, 32, 16, 16, 16, 8], [32, 16], [1, 4]),
    ([64, 32, 16, 8], [16], [2]),
    # Cuts of one size share its blocks; the deepest block is no candidate.
    ([16, 8, 8, 8, 8, 8], [16, 8, 8], [0, 2, 4]),
    ([16, 8, 8, 8, 8], [16, 8, 8], [0, 2, 3]),
    ([16, 8, 8, 8], [16, 8, 8], [0, 1, 2]),
  ],
)
def test_which_blocks_end_at_the_cuts(ours, cuts, expected):
  assert wrapping._ends(square(*ours), square(*cuts), 1) == expected


@pytest.mark.parametrize(
  ('ours', 'cuts', 'message'),
  [
    (
      [16, 8, 4],
      [32, 16],
      '32x32 at its cut 1, after block 1; .* 1 block.* own 0 can',
    ),
    (
      [32, 8, 4],
      [32, 16],
      '16x16 at its cut 2, .* they end at 32x32, 8x8, 4x4',
    ),
    ([16, 8, 8], [16, 8, 8], '8x8 at its cuts 2 to 3; there 2 .* own 1 can'),
    ([32, 16], [32, 16], '16x16 at its cut 2, .* own 0 can'),
  ],
)
def test_a_cut_where_no_block_ends(ours, cuts, message):
  with pytest.raises(wrapping.CutError, match=message):
    wrapping._ends(square(*ours), square(*cuts), 2)


@pytest.fixture(scope='module')
def exp():
  return experiment.build(tiny_run.values(**OTHER))


def test_sizes_by_hand(exp):
  student = exp.student
  # Block 1 is the family's blocks 1 and 2, the deepest one is its block 3; in
  # front of block 1 that family has 3 channels, in front of the deepest 10.
  assert student.family.widths == (3, 10, 12)
  assert student.family.units == (1, 2, 1)
  assert student.widths == (4, 5, 3)
  assert student.inputs == (0, 2, 3)  # 1.5, 2.5
  network = student.network(jnp.float32, folded=True)
  shapes = blocks.shapes(network, (8, 8, 1)).params

  def unit(a, b):  # A convolution with bias, a normalisation.
    return 9 * a * b + b + 2 * b

  assert [blocks.count_params(part) for part in shapes] == [
    unit(1, 4),
    4 * 2 + 2 + unit(2, 3) + unit(3, 5),
    5 * 3 + 3 + unit(3, 3),
    3 * 10 + 10,
  ]


def test_channels_inside_of_a_group_are_rounded_too():
  changes = {'compression__width_multiple_of': 2}
  student = experiment.build(tiny_run.values(**OTHER, **changes)).student
  assert (student.widths, student.inputs) == ((4, 6, 4), (0, 2, 2))
  chain = student.network(jnp.float32, folded=True).blocks[1].inner
  assert [block.width for block in chain.blocks] == [4, 6]  # 3.6 of 6
  assert wrapping._narrowed(12, 1.0, 8) == 12
  assert wrapping._narrowed(12, 0.9, 8) == 8
  assert wrapping._narrowed(13, 0.99, 8) == 13  # not 16
  assert wrapping._narrowed(3, 0.5, 8) == 3


def test_every_hybrid_is_defined(exp):
  teacher = exp.architecture.network()
  student = exp.student.network(jnp.float32, folded=False)
  for bits in range(8):
    chosen = [bool(bits >> i & 1) for i in range(3)]
    parts = [
      s if c else t for s, t, c in zip(student.blocks, teacher.blocks, chosen)
    ]
    head = student.head if chosen[-1] else teacher.head
    shapes = blocks.view_shapes(Network(tuple(parts), head), (8, 8, 1), 2)
    assert shapes.logits.shape == (2, 10)
    # The teacher's interface at every cut but the last, where the head is.
    assert [f.shape[-1] for f in shapes.features] == [
      4,
      6,
      3 if chosen[-1] else 8,
    ]


def test_the_head_belongs_to_the_deepest_block():
  """Of the shallowest first, the first stage still has the teacher's."""
  exp = experiment.build(tiny_run.values(**OTHER, order='clockwise'))
  theirs = blocks.shapes(exp.teacher_network, exp.image_shape).params[-1]
  first, second = (
    blocks.shapes(exp.network(stage), exp.image_shape).params[-1]
    for stage in exp.stages[:2]
  )
  assert first == theirs
  assert second['classifier']['kernel'].shape == (3, 10)


def test_folding_keeps_the_function(exp):
  whole = exp.student.network(jnp.float32, folded=False)
  folded = exp.student.network(jnp.float32, folded=True)
  variables = tiny.draw(whole)
  merged = compression.fold(variables, 1)
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(
    jnp.shape, blocks.shapes(folded, (8, 8, 1))
  )
  x = jax.random.normal(jax.random.key(0), (4, 8, 8, 1))
  ours, theirs = jax.jit(
    lambda a, b: (blocks.logits(folded, a, x), blocks.logits(whole, b, x))
  )(merged, variables)
  assert np.std(theirs, axis=0).min() > 0.01, 'the logits tell nothing'
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_chain_is_its_blocks_one_after_the_other(exp):
  chain = exp.student.network(jnp.float32, folded=True).blocks[1].inner
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 2))
  variables = chain.init(jax.random.key(1), x, train=False)
  out = chain.apply(variables, x, train=False)
  expected = x
  for i, block in enumerate(chain.blocks):
    own = {kind: tree[f'blocks_{i}'] for kind, tree in variables.items()}
    last = block.apply(own, expected, train=False)
    expected = last.output
  np.testing.assert_array_equal(out.output, expected)
  np.testing.assert_array_equal(out.features, last.features)
  np.testing.assert_array_equal(out.pre_activation, last.pre_activation)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'compression__init': 'slice'},
      "compression.init = 'slice': nothing .*model; allowed: random, pca",
    ),
    (
      {'compression__depth': (1, 1, 1)},
      r'compression.depth = \(1, 1, 1\): must be \(\) with compression.model',
    ),
    (
      {'compression__model': 'resnet8'},
      "compression.model = 'resnet8': the teacher .* 2x2 at its cut 1, .* 2x2$",
    ),
    (
      {
        'teacher__model': 'resnet8',
        'compression__model': 'resnet18',
        'compression__target': 'params:0.5',
        'compression__probe': True,
      },
      "probe = True: must be False with compression.model = 'resnet18'",
    ),
    (
      {'compression__model': 'vit_tiny'},
      "compression.model = 'vit_tiny': this model hands tokens, .* one family",
    ),
    (
      {'compression__model': 'resnet9'},
      "compression.model: model 'resnet9' is not known; did you mean",
    ),
  ],
)
def test_errors(changes, message):
  with pytest.raises(UserError, match=message) as caught:
    experiment.build(tiny_run.values(**{**OTHER, **changes}))
  assert '\n' not in str(caught.value)


def test_pca_where_the_family_takes_more_channels_than_there_are():
  """All of the teacher's directions, and what was drawn beyond them."""
  random = np.random.default_rng(0)
  x = jnp.asarray(random.normal(1, 2, size=(8, 4, 4, 3)), jnp.float32)
  block = Adapted(layers.PoolingHead(2), reduce=5)  # not run: no `expand`
  drawn = {'reduce': {'kernel': jnp.ones((1, 1, 3, 5)), 'bias': jnp.zeros(5)}}
  found = initialization.fit_adapters(block, drawn, {}, x, x)['reduce']
  kernel, bias = np.asarray(found['kernel'])[0, 0], np.asarray(found['bias'])
  np.testing.assert_allclose(
    kernel[:, :3].T @ kernel[:, :3], np.eye(3), atol=1e-5
  )
  np.testing.assert_array_equal(kernel[:, 3:], 1)
  np.testing.assert_allclose(
    (np.asarray(x).reshape(-1, 3) @ kernel + bias).mean(0), 0, atol=1e-5
  )


def test_a_run(tmp_path):
  """All stages and the thaw; the saved student is the one that was tested."""
  teacher = tmp_path / 'checkpoint'
  method_runs.write_teacher(teacher)
  changes = {'compression__init': 'pca', 'teacher__checkpoint': str(teacher)}
  found = tiny_run.run(tmp_path / 'run', OTHER | changes)
  assert [stage['name'] for stage in found['stages']] == [
    'stage_1',
    'stage_2',
    'thaw',
  ]
  assert all(np.isfinite(stage['loss']) for stage in found['stages'])
  assert found['student']['params'] == 48 + 223 + 108 + 40
  records = digits.open_split('test[:32]', 'test').__getitems__([*range(32)])
  images = np.stack([record['image'] for record in records])
  labels = np.array([record['label'] for record in records])
  logits = cbkd_jax.load_student(tmp_path / 'run')(images)
  right = np.mean(np.argmax(logits, -1) == labels)
  assert right == found['student']['accuracy']


@pytest.mark.parametrize(
  ('teacher', 'model', 'side', 'widths', 'units'),
  [
    ('resnet8', 'resnet18', 16, (64, 128, 512), (1, 2, 4)),
    ('wrn_10_1', 'resnet14', 16, (16, 32, 64), (1, 2, 2)),
  ],
)
def test_pairs_of_published_families(teacher, model, side, widths, units):
  shape = (side, side, 3)
  family = wrapping.cut_alike(
    models.build(model, 10, shape), models.build(teacher, 10, shape), 1, shape
  )
  assert (family.widths, family.units) == (widths, units)
