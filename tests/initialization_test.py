"""How student blocks start, against arithmetic on the teacher's weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, compression, initialization, models
from cbkd_jax.blocks import Variables
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')


def images(channels, examples=64):
  random = np.random.default_rng(7)
  return jnp.asarray(
    random.normal(size=(examples, 8, 8, channels)), jnp.float32
  )


def initialize(kind, architecture, student, image_shape=tiny.IMAGE_SHAPE):
  """The student with every block but the inherited ones initialised."""
  teacher = architecture.network()
  teacher_variables = tiny.draw(teacher, image_shape)
  network = student.network(jnp.float32, folded=False)
  random = tiny.draw(network, image_shape, seed=1)
  variables = random
  for index in range(student.inherit, len(student.widths)):
    before = variables
    variables = initialization.initialize_block(
      kind,
      index,
      teacher=architecture,
      units=student.units[index],
      network=network,
      random=before,
      teacher_network=teacher,
      teacher_variables=teacher_variables,
      images=images(image_shape[-1]),
    )
    # Only this block's entries change, and the head's with the deepest.
    deepest = index == len(student.widths) - 1
    for i in range(len(network.parts)):
      if i != index and not (deepest and i == len(student.widths)):
        assert variables.params[i] is before.params[i]
        assert variables.batch_stats[i] is before.batch_stats[i]
  shape_of = lambda x: (x.shape, x.dtype)  # noqa: E731
  assert jax.tree.map(shape_of, variables) == jax.tree.map(shape_of, random)
  inherited = Variables(
    *(
      (*theirs[: student.inherit], *ours[student.inherit :])
      for ours, theirs in zip(variables, teacher_variables)
    )
  )
  return (network, inherited), (teacher, teacher_variables), random


def logits(pair, x):
  return np.asarray(
    jax.jit(lambda v, x: blocks.logits(pair[0], v, x))(pair[1], x)
  )


@pytest.mark.parametrize('name', ['resnet8', 'vgg8', 'wrn_10_1', 'resnet50'])
def test_slice_at_full_width_is_the_teacher(name):
  architecture = models.build(name, 5, (8, 8, 3))
  count = len(architecture.widths)
  if name == 'resnet50':  # One unit each: a bottleneck is what matters.
    architecture = dataclasses.replace(architecture, units=(1,) * count)
  student = compression.compress(
    architecture, keep=(1,) * count, depth=(), inherit=1
  )
  ours, theirs, _ = initialize('slice', architecture, student, (8, 8, 3))
  for i in range(1, count):
    assert tiny.same(ours[1].params[i]['inner'], theirs[1].params[i])
    assert tiny.same(ours[1].batch_stats[i]['inner'], theirs[1].batch_stats[i])
  assert tiny.same(ours[1].params[-1], theirs[1].params[-1])
  assert tiny.same(ours[1].batch_stats[-1], theirs[1].batch_stats[-1])
  x = images(3, examples=2)
  np.testing.assert_allclose(
    logits(ours, x), logits(theirs, x), rtol=1e-5, atol=1e-5
  )


def test_slice_takes_the_most_important_channels():
  architecture = tiny.architecture()
  student = compression.compress(
    architecture, keep=(1, 0.5, 0.5), depth=(), inherit=1
  )
  ours, theirs, _ = initialize('slice', architecture, student)
  for index in (1, 2):
    old = jax.tree.map(np.asarray, theirs[1].params[index]['unit_0'])
    new = ours[1].params[index]
    # Inputs by the size of what reads them, outputs by |scale|.
    readers = np.abs(old['conv']['kernel']).sum((0, 1, 3))
    rows = sorted(np.argsort(-readers)[: student.inputs[index]])
    scales = np.abs(old['norm']['scale'])
    columns = sorted(np.argsort(-scales)[: student.widths[index]])
    assert rows != list(range(len(rows))) or columns != list(
      range(len(columns))
    )

    inner = new['inner']['unit_0']
    np.testing.assert_array_equal(
      inner['conv']['kernel'], old['conv']['kernel'][:, :, rows][..., columns]
    )
    np.testing.assert_array_equal(
      inner['conv']['bias'], old['conv']['bias'][columns]
    )
    for name in ('scale', 'bias'):
      np.testing.assert_array_equal(
        inner['norm'][name], old['norm'][name][columns]
      )
    stats = ours[1].batch_stats[index]['inner']['unit_0']['norm']
    old_stats = theirs[1].batch_stats[index]['unit_0']['norm']
    for name in ('mean', 'var'):
      np.testing.assert_array_equal(
        stats[name], np.asarray(old_stats[name])[columns]
      )
    expected = np.zeros((architecture.widths[index - 1], len(rows)))
    expected[rows, range(len(rows))] = 1
    np.testing.assert_array_equal(new['reduce']['kernel'][0, 0], expected)
    assert not np.any(new['reduce']['bias'])
    if index == 1:
      expected = np.zeros((len(columns), architecture.widths[index]))
      expected[range(len(columns)), columns] = 1
      np.testing.assert_array_equal(new['expand']['kernel'][0, 0], expected)
      assert not np.any(new['expand']['bias'])
    else:
      classifier = ours[1].params[3]['classifier']
      old = theirs[1].params[3]['classifier']
      np.testing.assert_array_equal(
        classifier['kernel'], np.asarray(old['kernel'])[columns]
      )
      np.testing.assert_array_equal(classifier['bias'], old['bias'])


def test_sliced_residual_units_agree_on_their_sum():
  """All units of a block keep the same channels of what they add to."""
  architecture = models.build('resnet14', 5, (8, 8, 3))
  student = compression.compress(
    architecture, keep=(1, 0.5, 0.25), depth=(), inherit=1
  )
  ours, theirs, _ = initialize('slice', architecture, student, (8, 8, 3))
  old = jax.tree.map(np.asarray, theirs[1].params[1])
  scales = sum(
    np.abs(old[unit][norm]['scale'])
    for unit, norm in (
      ('unit_0', 'norm2'),
      ('unit_0', 'shortcut_norm'),
      ('unit_1', 'norm2'),
    )
  )
  kept = sorted(np.argsort(-scales)[:16])
  inside = sorted(np.argsort(-np.abs(old['unit_1']['norm1']['scale']))[:16])
  unit = ours[1].params[1]['inner']['unit_1']
  np.testing.assert_array_equal(
    unit['conv1']['kernel'],
    old['unit_1']['conv1']['kernel'][:, :, kept][..., inside],
  )
  np.testing.assert_array_equal(
    unit['conv2']['kernel'],
    old['unit_1']['conv2']['kernel'][:, :, inside][..., kept],
  )
  assert np.isfinite(logits(ours, images(3, examples=2))).all()


def test_input_channels_count_by_what_reads_them():
  """Even where the block begins with a normalisation of its own."""
  architecture = models.build('wrn_10_1', 5, (8, 8, 3))
  student = compression.compress(
    architecture, keep=(1, 0.5, 0.25), depth=(), inherit=1
  )
  ours, theirs, _ = initialize('slice', architecture, student, (8, 8, 3))
  old = jax.tree.map(np.asarray, theirs[1].params[1]['unit_0'])
  readers = sum(
    np.abs(old[name]['kernel']).sum((0, 1, 3)) for name in ('conv1', 'shortcut')
  )
  rows = np.sort(np.argsort(-readers)[:8])
  by_scale = np.sort(np.argsort(-np.abs(old['norm1']['scale']))[:8])
  assert not np.array_equal(rows, by_scale)
  reduce = np.asarray(ours[1].params[1]['reduce']['kernel'][0, 0])
  np.testing.assert_array_equal(reduce.argmax(0), rows)
  unit = ours[1].params[1]['inner']['unit_0']
  np.testing.assert_array_equal(
    unit['norm1']['scale'], old['norm1']['scale'][rows]
  )


@pytest.mark.parametrize('kind', initialization.INITS)
def test_a_narrow_student_runs(kind):
  architecture = models.build('wrn_10_1', 5, (8, 8, 3))
  count = len(architecture.widths)
  student = compression.compress(
    architecture, keep=(1, *[0.15] * (count - 1)), depth=(), inherit=1
  )
  ours, _, random = initialize(kind, architecture, student, (8, 8, 3))
  assert np.isfinite(logits(ours, images(3, examples=2))).all()
  assert tiny.same(ours[1].params[1:], random.params[1:]) == (kind == 'random')


@pytest.mark.parametrize(
  ('units', 'kept', 'chosen'),
  [(3, 2, (0, 2)), (3, 1, (0,)), (5, 3, (0, 2, 4)), (4, 3, (0, 2, 3))],
)
def test_units_are_taken_evenly(units, kept, chosen):
  architecture = tiny.architecture(units=(1, units, 1))
  student = compression.compress(
    architecture, keep=(1, 1, 1), depth=(1, kept, 1), inherit=1
  )
  ours, theirs, _ = initialize('slice', architecture, student)
  inner = ours[1].params[1]['inner']
  assert len(inner) == kept
  for i, origin in enumerate(chosen):
    assert tiny.same(inner[f'unit_{i}'], theirs[1].params[1][f'unit_{origin}'])
    assert tiny.same(
      ours[1].batch_stats[1]['inner'][f'unit_{i}'],
      theirs[1].batch_stats[1][f'unit_{origin}'],
    )
  assert np.isfinite(logits(ours, images(1, examples=2))).all()


@pytest.mark.parametrize('keep', [1, 0.5])
def test_pca(keep):
  architecture = tiny.architecture()
  student = compression.compress(
    architecture, keep=(1, keep, keep), depth=(), inherit=1
  )
  ours, theirs, random = initialize('pca', architecture, student)
  outputs, _ = blocks.run(*theirs, images(1))
  params = ours[1].params[1]
  x = np.asarray(outputs[0].output, np.float64)
  y = np.asarray(outputs[1].output, np.float64).reshape(-1, 6)

  # `reduce`: orthonormal; its outputs are centred, uncorrelated and hold the
  # largest variances of the input.
  kernel = np.asarray(params['reduce']['kernel'], np.float64)[0, 0]
  width = student.inputs[1]
  assert kernel.shape == (4, width)
  np.testing.assert_allclose(kernel.T @ kernel, np.eye(width), atol=1e-5)
  reduced = x.reshape(-1, 4) @ kernel + np.asarray(params['reduce']['bias'])
  np.testing.assert_allclose(reduced.mean(0), 0, atol=1e-4)
  _, values, _ = np.linalg.svd(x.reshape(-1, 4) - x.reshape(-1, 4).mean(0))
  np.testing.assert_allclose(
    reduced.T @ reduced, np.diag(values[:width] ** 2), rtol=1e-3, atol=0.1
  )
  if keep == 1:  # Nothing is lost.
    restored = reduced @ np.linalg.inv(kernel) + x.reshape(-1, 4).mean(0)
    np.testing.assert_allclose(restored, x.reshape(-1, 4), atol=1e-4)

  # `expand`: least squares from the random block's features, in train mode.
  inner = architecture.block(1, student.widths[1], 1)
  assert tiny.same(params['inner'], random.params[1]['inner'])
  out, _ = inner.apply(
    {
      'params': params['inner'],
      'batch_stats': random.batch_stats[1]['inner'],
    },
    jnp.asarray(reduced.reshape(*x.shape[:-1], width), jnp.float32),
    train=True,
    mutable=['batch_stats'],
  )
  features = np.asarray(out.output, np.float64).reshape(len(y), -1)
  centred = features - features.mean(0)
  ridge = 1e-3 * (centred**2).sum() / centred.shape[1]
  kernel, *_ = np.linalg.lstsq(
    np.concatenate([centred, np.sqrt(ridge) * np.eye(centred.shape[1])]),
    np.concatenate([y - y.mean(0), np.zeros((centred.shape[1], 6))]),
  )
  np.testing.assert_allclose(
    params['expand']['kernel'][0, 0], kernel, rtol=1e-3, atol=1e-4
  )
  np.testing.assert_allclose(
    params['expand']['bias'],
    y.mean(0) - features.mean(0) @ kernel,
    rtol=1e-3,
    atol=1e-4,
  )
  # The deepest block has no `expand`, and its head stays random.
  assert 'expand' not in ours[1].params[2]
  assert tiny.same(ours[1].params[3], random.params[3])


def test_pca_of_one_channel():
  architecture = tiny.architecture()
  architecture = dataclasses.replace(architecture, widths=(1, 2, 2))
  student = compression.compress(
    architecture, keep=(1, 0.5, 0.5), depth=(), inherit=1
  )
  ours, _, _ = initialize('pca', architecture, student)
  assert np.isfinite(logits(ours, images(1, examples=2))).all()


def test_slice_without_wiring():
  architecture = dataclasses.replace(tiny.architecture(), wiring=None)
  student = tiny.student(architecture)
  with pytest.raises(
    UserError, match=r"init = 'slice': .* no wiring"
  ) as caught:
    initialize('slice', architecture, student)
  assert 'allowed: random, pca' in str(caught.value)
  assert '\n' not in str(caught.value)
  for kind in ('random', 'pca'):
    initialize(kind, architecture, student)
