"""Crops, flips and normalisation against plain loops in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.data import augment
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

MEAN, STD = (0.5, 0.25, 0.75), (0.25, 0.5, 0.125)
PLAIN = Augmentation(0, False, MEAN, STD)
run = jax.jit(augment.augment, static_argnums=3)


def pixels(n=64, height=6, width=5, channels=3):
  """Random images without black pixels, so that padding can be told."""
  rng = np.random.default_rng(0)
  return rng.integers(1, 256, (n, height, width, channels), np.uint8)


def undo(result, channels=3):
  """The uint8 images that were normalised."""
  mean, std = np.array(MEAN[:channels]), np.array(STD[:channels])
  return np.round((np.asarray(result) * std + mean) * 255).astype(np.uint8)


def crops(image, pad, flip):
  """Every possible crop and flip of an image as {(row, col, flip): image}."""
  height, width, _ = image.shape
  padded = np.zeros((height + 2 * pad, width + 2 * pad, 3), np.uint8)
  for i in range(height):
    for j in range(width):
      padded[i + pad, j + pad] = image[i, j]
  possible = {}
  for row in range(2 * pad + 1):
    for column in range(2 * pad + 1):
      crop = padded[row : row + height, column : column + width]
      possible[row, column, False] = crop
      if flip:
        possible[row, column, True] = crop[:, ::-1]
  return possible


def test_normalise_by_hand():
  images = jnp.array([0, 51, 255], jnp.uint8).reshape(1, 1, 1, 3)
  augmentation = Augmentation(0, False, MEAN, STD)
  result = augment.normalise(images, augmentation)
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(
    result[0, 0, 0], [(0 - 0.5) / 0.25, (0.2 - 0.25) / 0.5, 2.0], rtol=1e-6
  )
  half = augment.normalise(images, augmentation, jnp.bfloat16)
  assert half.dtype == jnp.bfloat16
  np.testing.assert_array_equal(half, result.astype(jnp.bfloat16))


@pytest.mark.parametrize(
  ('pad', 'flip'), [(2, True), (2, False), (0, True), (7, True)]
)
def test_each_image_is_one_of_its_crops(pad, flip):
  images = pixels()
  result = undo(
    run(
      images,
      jax.random.key(1),
      jnp.arange(len(images)),
      Augmentation(pad, flip, MEAN, STD),
    )
  )
  drawn = []
  for image, cropped in zip(images, result):
    fits = [
      place
      for place, crop in crops(image, pad, flip).items()
      if np.array_equal(crop, cropped)
    ]
    assert fits, 'an image became something else'
    drawn.append(fits[0])
  # Not the same for all, and the whole range is used.
  rows, columns, flips = map(set, zip(*drawn))
  assert flips == ({False, True} if flip else {False})
  if pad == 2:
    assert rows == columns == set(range(5))


def test_draws_are_uniform_and_independent():
  rows, columns, flips = augment._draws(
    jax.random.key(0), jnp.arange(20_000), pad=1
  )
  # As ever, or runs could not be continued by a later version.
  assert [x[:6].tolist() for x in (rows, columns, flips)] == [
    [1, 2, 0, 0, 0, 1],
    [2, 1, 1, 0, 2, 1],
    [True, False, True, True, True, False],
  ]
  counts = np.zeros((3, 3, 2))
  np.add.at(counts, (rows, columns, flips.astype(int)), 1)
  # 1,111 expected in each cell, with a deviation of 32.
  np.testing.assert_allclose(counts, 20_000 / 18, atol=150)


def test_cutout_by_hand():
  images = pixels(n=400, height=6, width=5)
  plain = np.asarray(augment.normalise(images, PLAIN))
  rng, positions = jax.random.key(1), jnp.arange(400)
  for side in 3, 4:
    augmentation = dataclasses.replace(PLAIN, cutout=side)
    found = np.asarray(run(images, rng, positions, augmentation))
    squares = {}
    for row in range(6):
      for column in range(5):
        kept = np.ones((6, 5, 1), bool)
        for i in range(row - side // 2, row - side // 2 + side):
          for j in range(column - side // 2, column - side // 2 + side):
            if 0 <= i < 6 and 0 <= j < 5:
              kept[i, j] = False
        squares[kept.tobytes()] = 0
    assert len(squares) == 30
    for before, after in zip(plain, found):
      kept = (after != 0).all(-1, keepdims=True)
      squares[kept.tobytes()] += 1
      np.testing.assert_allclose(after, np.where(kept, before, 0), atol=1e-5)
    # Every place is drawn, about as often: 13 times of 400.
    assert len(squares) == 30
    assert min(squares.values()) >= 3
    assert max(squares.values()) <= 29


def test_flips_that_are_given():
  images, mirrored = pixels(), np.arange(64) % 3 == 0
  augmentation = dataclasses.replace(PLAIN, flip=True, alternating_flip=True)
  found = run(images, jax.random.key(0), jnp.arange(64), augmentation, mirrored)
  expected = [i[:, ::-1] if m else i for i, m in zip(images, mirrored)]
  np.testing.assert_array_equal(undo(found), expected)


def test_one_and_four_shards_draw_the_same():
  images, rng = pixels(16), jax.random.key(3)
  augmentation = Augmentation(2, True, MEAN, STD, cutout=3)
  whole = run(images, rng, jnp.arange(16), augmentation)
  shards = [
    run(images[i : i + 4], rng, jnp.arange(i, i + 4), augmentation)
    for i in range(0, 16, 4)
  ]
  np.testing.assert_array_equal(jnp.concatenate(shards), whole)
  # Not because nothing happens: the position counts, and so does the key.
  moved = run(images, rng, jnp.arange(1, 17), augmentation)
  other = run(images, jax.random.key(4), jnp.arange(16), augmentation)
  assert not np.array_equal(moved, whole)
  assert not np.array_equal(other, whole)


def test_nothing_to_do_is_exact_and_draws_nothing():
  images = pixels()
  augmentation = Augmentation(0, False, MEAN, STD)

  def nothing(images, rng):
    return augment.augment(images, rng, jnp.arange(64), augmentation)

  rng = jax.random.key(0)
  np.testing.assert_array_equal(
    nothing(images, rng), augment.normalise(images, augmentation)
  )
  assert 'threefry' not in str(jax.make_jaxpr(nothing)(images, rng))
  assert 'random_bits' not in str(jax.make_jaxpr(nothing)(images, rng))


def test_grey_images():
  images = pixels(channels=1)
  augmentation = Augmentation(1, True, MEAN[:1], STD[:1])
  result = run(images, jax.random.key(0), jnp.arange(64), augmentation)
  assert result.shape == images.shape
  assert set(np.unique(undo(result, 1))) <= {0, *np.unique(images)}


def test_channel_stats_in_chunks():
  images = pixels(n=2500)
  mean, std = augment.channel_stats(images)
  scaled = images / 255
  np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-12)
  # Normalising with them gives mean 0 and deviation 1.
  result = augment.normalise(images, Augmentation(0, False, mean, std))
  np.testing.assert_allclose(result.mean((0, 1, 2)), 0, atol=1e-5)
  np.testing.assert_allclose(result.std((0, 1, 2)), 1, rtol=1e-5)


def test_channel_stats_of_one_colour():
  images = np.full((3, 2, 2, 1), 255, np.uint8)
  assert augment.channel_stats(images) == ((1.0,), (0.0,))


@pytest.mark.parametrize(
  ('pad', 'mean', 'std', 'field'),
  [
    (-1, MEAN, STD, 'data.pad = -1'),
    (0, MEAN, STD[:2], 'data.mean'),
    (0, MEAN, (0.1, 0.0, 0.1), 'data.std'),
  ],
)
def test_numbers_out_of_range(pad, mean, std, field):
  with pytest.raises(UserError, match=field):
    Augmentation(pad, False, mean, std)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'cutout': -1}, 'data.cutout = -1, but it must be 0 or more'),
    ({'mixup': -0.5}, 'data.mixup = -0.5, but it must be 0 or more'),
    ({'cutmix': float('nan')}, 'data.cutmix = nan, but it must be 0 or more'),
    (
      {'alternating_flip': True},
      'data.alternating_flip = True, but data.flip = False; it must be True',
    ),
  ],
)
def test_options_out_of_range(fields, message):
  with pytest.raises(UserError) as caught:
    dataclasses.replace(PLAIN, **fields)
  assert str(caught.value) == message
