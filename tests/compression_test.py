"""Student networks: sizes, what they compute, and folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, compression, models
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def compress(name='resnet56', side=32, **fields):
  fields = {'keep': (1.0, 0.5, 0.5), 'depth': (), 'inherit': 1} | fields
  return compression.compress(models.build(name, 10, (side, side, 3)), **fields)


@pytest.mark.parametrize(
  ('name', 'fields', 'widths', 'inputs', 'units'),
  [
    ('resnet56', {}, (16, 16, 32), (0, 8, 16), (9, 9, 9)),
    # Half of a channel is rounded up; half of a block's *input* is reduced.
    (
      'resnet56',
      {'keep': (1, 0.45, 0.45)},
      (16, 14, 29),  # 14.4, 28.8
      (0, 7, 14),  # 7.2, 14.4
      (9, 9, 9),
    ),
    ('resnet8', {'keep': (1, 0.01, 0.01)}, (16, 1, 1), (0, 1, 1), (1, 1, 1)),
    (
      'resnet56',
      {'keep': (1, 0.45, 0.45), 'width_multiple_of': 8},
      (16, 16, 32),  # 14.4, 28.8
      (0, 8, 16),  # 7.2, 14.4
      (9, 9, 9),
    ),
    (
      'resnet56',
      {'keep': (1, 0.1, 0.1), 'width_multiple_of': 8},
      (16, 8, 8),  # 3.2, 6.4: at least one multiple
      (0, 8, 8),
      (9, 9, 9),
    ),
    (
      'resnet56',
      {'keep': (1, 1, 0.5), 'inherit': 2, 'depth': (9, 9, 4)},
      (16, 32, 32),
      (0, 0, 16),
      (9, 9, 4),
    ),
    # A kept width still gets `reduce`: the blocks' interface is the same.
    ('resnet8', {'keep': (1, 1, 1)}, (16, 32, 64), (0, 16, 32), (1, 1, 1)),
    (
      'resnet8',
      {'keep': (1, 0.25, 0.5), 'allow_any_order': True},
      (16, 8, 32),
      (0, 4, 16),
      (1, 1, 1),
    ),
    # A bottleneck's width is a multiple of 4.
    (
      'resnet50',
      {'keep': (1, 0.5, 0.3, 0.001)},
      (256, 256, 308, 4),  # 307.2, 2.05
      (0, 128, 154, 1),  # 153.6, 1.02
      (3, 4, 6, 3),
    ),
  ],
)
def test_sizes_by_hand(name, fields, widths, inputs, units):
  student = compress(name, **fields)
  assert (student.widths, student.inputs, student.units) == (
    widths,
    inputs,
    units,
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'keep': (1.0, 0.5)}, 'must have 3 entries, .* but has 2'),
    ({'keep': (1.0, 0.5, 0.5, 0.5)}, 'but has 4'),
    ({'keep': (1.0, 0.5, 0.0)}, 'above 0 and at most 1'),
    ({'keep': (1.0, 0.5, -0.5)}, 'above 0 and at most 1'),
    ({'keep': (1.5, 0.5, 0.5)}, 'above 0 and at most 1'),
    ({'keep': (1.0, float('nan'), 0.5)}, 'above 0 and at most 1'),
    ({'keep': (0.9, 0.5, 0.5)}, r'the first 1 must be 1, .* \(inherit = 1\)'),
    ({'keep': (1.0, 0.5, 0.5), 'inherit': 2}, 'the first 2 must be 1'),
    ({'keep': (1.0, 0.5, 0.6)}, 'must not grow with depth; .*allow_any_order'),
    ({'depth': (9, 9)}, r'must have 3 entries, .* \(9, 9, 9\)'),
    ({'depth': (9, 9, 0)}, 'from 1 to the units'),
    ({'depth': (9, 9, 10)}, 'from 1 to the units'),
    ({'depth': (8, 9, 9)}, r'must start with \(9,\)'),
    (
      {'width_multiple_of': 32},
      'block 1 would get 32 channels where it has 16',
    ),
  ],
)
def test_errors(fields, message):
  with pytest.raises(UserError, match=message) as caught:
    compress(**fields)
  error = str(caught.value)
  assert error.startswith('compression.')
  assert '\n' not in error


def inputs(side, channels=3):
  random = np.random.default_rng(5)
  return jnp.asarray(random.normal(size=(4, side, side, channels)), jnp.float32)


def assert_same_function(one, two, x):
  """Two (network, variables) give the same logits, to 1e-5 relative."""
  ours, theirs = jax.jit(
    lambda ours, theirs, x: (
      blocks.logits(one[0], ours, x),
      blocks.logits(two[0], theirs, x),
    )
  )(one[1], two[1], x)
  ours, theirs = np.asarray(ours), np.asarray(theirs)
  assert ours.std(0).min() > 0.01, 'the logits tell nothing'
  error = np.abs(ours - theirs).max() / np.abs(theirs).max()
  assert error < 1e-5


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    # Strided first convolutions.
    ('resnet14', {'depth': (2, 2, 1)}),
    # One interface, between blocks 1 and 2, when two are inherited: none.
    ('resnet8', {'keep': (1, 1, 0.5), 'inherit': 2}),
    # Poolings between blocks 0 and 1, 1 and 2.
    ('vgg8', {'keep': (1, 0.1, 0.08, 0.05, 0.03)}),
    # Normalisation before the first convolution.
    ('wrn_10_1', {'keep': (1, 0.8, 0.5)}),
    ('resnet18', {'keep': (1, 0.2, 0.1, 0.05)}),
    ('resnet50', {'keep': (1, 0.1, 0.05, 0.02), 'depth': (3, 1, 1, 1)}),
    # Two groups of units in blocks 2 and 3.
    ('mobilenet_v2', {'keep': (1, 0.2, 0.1, 0.1), 'depth': (3, 1, 2, 2)}),
    # Channels that can't be divided into groups, and such that can.
    ('ShuffleV1', {'keep': (1, 0.2, 0.2, 0.1), 'depth': (1, 2, 1, 1)}),
    ('ShuffleV2', {'keep': (1, 0.2, 0.2, 0.1), 'depth': (1, 2, 1, 1)}),
    # Growth and transitions divide the width.
    ('densenet_bc_16_4', {'keep': (1, 0.6, 0.5), 'depth': (2, 1, 2)}),
  ],
)
def test_folding_keeps_the_function(name, fields):
  side = 16 if name == 'vgg8' else 8
  student = compress(name, side, **fields)
  whole = student.network(jnp.float32, folded=False)
  folded = student.network(jnp.float32, folded=True)
  variables = tiny.draw(whole, (side, side, 3))
  merged = compression.fold(variables, student.inherit)
  # Exactly the arrays that the folded network has, float32 all.
  assert jax.tree.map(lambda x: (x.shape, x.dtype), merged) == jax.tree.map(
    lambda x: (x.shape, x.dtype), blocks.shapes(folded, (side, side, 3))
  )
  assert_same_function((folded, merged), (whole, variables), inputs(side))


def test_fold_leaves_its_argument_alone():
  student = tiny.student(tiny.architecture())
  variables = tiny.draw(student.network(jnp.float32, folded=False))
  before = jax.tree.map(np.array, variables)
  compression.fold(variables, 1)
  assert tiny.same(variables, before)


def test_fold_by_hand():
  params = (
    {},
    {
      'expand': {
        'kernel': np.array([[[[1.0, 2.0]]]]),
        'bias': np.array([3.0, 4.0]),
      }
    },
    {
      'reduce': {
        'kernel': np.array([[[[5.0], [6.0]]]]),
        'bias': np.array([7.0]),
      }
    },
    {},
  )
  merged = compression.fold(Variables(params, ({},) * 4), 1)
  assert merged.params[1] == {}
  reduce = merged.params[2]['reduce']
  assert reduce['kernel'].tolist() == [[[[17.0]]]]  # 1*5 + 2*6
  assert reduce['bias'].tolist() == [46.0]  # 3*5 + 4*6 + 7


@pytest.fixture(scope='module')
def teacher():
  architecture = tiny.architecture()
  network = architecture.network()
  return architecture, network, tiny.draw(network)


def mixed(teacher_variables, student_variables, is_student):
  """A hybrid's variables; the head goes with the deepest block."""
  return Variables(
    *(
      tuple(
        s if chosen else t
        for t, s, chosen in zip(ours, theirs, (*is_student, is_student[-1]))
      )
      for ours, theirs in zip(teacher_variables, student_variables)
    )
  )


def test_hybrid_without_student_blocks_is_the_teacher(teacher):
  architecture, network, variables = teacher
  hybrid = tiny.hybrid(architecture, (False,) * 3)
  # The very same program on the very same arrays.
  assert hybrid.parts == network.parts
  x = inputs(8, 1)
  np.testing.assert_array_equal(
    blocks.logits(hybrid, variables, x), blocks.logits(network, variables, x)
  )


def test_last_hybrid_is_the_student(teacher):
  architecture, _, variables = teacher
  student = tiny.student(architecture)
  network = student.network(jnp.float32, folded=False)
  is_student = (False, True, True)
  hybrid = tiny.hybrid(architecture, is_student)
  assert hybrid == network
  # The student's first block is the teacher's: handed down as it is.
  small = tiny.draw(network, seed=1)
  handed_down = mixed(variables, small, is_student)
  assert tiny.same(handed_down.params[0], variables.params[0])
  x = inputs(8, 1)
  np.testing.assert_array_equal(
    blocks.logits(hybrid, handed_down, x),
    blocks.logits(network, handed_down, x),
  )
  folded = student.network(jnp.float32, folded=True)
  assert_same_function(
    (folded, compression.fold(handed_down, 1)), (network, handed_down), x
  )


@pytest.mark.parametrize(
  'name', ['resnet8', 'vgg8', 'wrn_10_1', 'densenet_bc_10_4']
)
def test_any_subset_of_blocks_can_be_swapped(name):
  side = 16
  architecture = models.build(name, 10, (side, side, 3))
  count = len(architecture.widths)
  student = compress(name, side, keep=(1, *[0.5] * (count - 1)))
  small = student.network(jnp.float32, folded=False)
  teacher = architecture.network()

  def outputs(network):
    variables = blocks.shapes(network, (side, side, 3))
    x = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    found = jax.eval_shape(
      lambda v, x: blocks.run(network, v, x)[0], variables, x
    )
    return [o.output.shape for o in found[:-1]], found[-1].logits.shape

  expected = outputs(teacher)
  # A block meets its neighbours alone: with the teacher's own blocks, these are
  # all four pairs at every cut.
  for chosen in (
    [True] * count,
    [i % 2 == 0 for i in range(count)],
    [i % 2 == 1 for i in range(count)],
  ):
    parts = [
      s if c else t for s, t, c in zip(small.blocks, teacher.blocks, chosen)
    ]
    shapes, logits = outputs(Network(tuple(parts), teacher.head))
    if chosen[-1]:  # The deepest block ends in the head, at its own width.
      assert shapes[-1][-1] == student.widths[-1]
      shapes = [*shapes[:-1], expected[0][-1]]
    assert (shapes, logits) == expected


def conv(k, a, b):
  return k * k * a * b


def test_params_of_the_folded_student_by_hand():
  student = compress('resnet8', keep=(1, 0.5, 0.25))

  def count(folded):
    network = student.network(jnp.float32, folded)
    shapes = blocks.shapes(network, (32, 32, 3)).params
    return [blocks.count_params(part) for part in shapes]

  def unit(a, b):  # Two convolutions, their norms, a projected shortcut.
    return conv(3, a, b) + conv(3, b, b) + conv(1, a, b) + 3 * 2 * b

  # The teacher's first block has no projection.
  first = conv(3, 3, 16) + 2 * 16 + 2 * conv(3, 16, 16) + 2 * 2 * 16
  head = 16 * 10 + 10
  assert count(folded=True) == [
    first,
    16 * 8 + 8 + unit(8, 16),
    16 * 8 + 8 + unit(8, 16),  # 16 channels of block 1 into 0.25 * 32
    head,
  ]
  assert count(folded=False) == [
    first,
    16 * 8 + 8 + unit(8, 16) + 16 * 32 + 32,
    32 * 8 + 8 + unit(8, 16),
    head,
  ]
