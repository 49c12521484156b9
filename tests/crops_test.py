"""Parts of images: where they lie, and how they are scaled."""

import numpy as np
import pytest

from cbkd_jax.data import crops


def test_random_boxes_are_as_published():
  boxes = np.array(
    [crops.random_box(3, i, 300, 400, 0.08) for i in range(2000)]
  )
  top, left, height, width = boxes.T
  assert min(top.min(), left.min(), height.min(), width.min()) >= 0
  assert (top + height).max() <= 300
  assert (left + width).max() <= 400
  areas, ratios = height * width / 120_000, width / height
  # To rounding, to whole pixels.
  assert 0.08 * 0.98 < areas.min() < 0.1
  assert areas.max() > 0.95
  assert 0.75 * 0.98 < ratios.min() < 0.77
  assert 1.31 < ratios.max() < 4 / 3 * 1.02
  # Large parts fit less often: below 0.54, the mean of 0.08 to 1.
  assert 0.41 < areas.mean() < 0.45
  assert abs(np.mean(top + height / 2) - 150) < 4
  assert abs(np.mean(left + width / 2) - 200) < 6


def test_a_random_box_is_a_function_of_seed_and_position_alone():
  first = [crops.random_box(0, i, 300, 400, 0.08) for i in range(3)]
  # Another order would change what every finished run has seen.
  assert first == [(1, 6, 298, 314), (2, 28, 280, 338), (53, 212, 226, 178)]
  assert [crops.random_box(0, i, 300, 400, 0.08) for i in (2, 1, 0)] == (
    first[::-1]
  )
  assert crops.random_box(1, 0, 300, 400, 0.08) != first[0]


@pytest.mark.parametrize(
  ('height', 'width', 'box'),
  [
    (1000, 12, (492, 0, 16, 12)),
    (12, 1000, (0, 492, 12, 16)),
    (1, 1, (0, 0, 1, 1)),
  ],
)
def test_where_no_draw_fits_the_centre_is_taken(height, width, box):
  assert crops.random_box(0, 0, height, width, 0.5) == box


@pytest.mark.parametrize(
  ('size', 'target', 'box'),
  [
    ((375, 500), (224, 224), (23, 86, 328, 328)),
    ((500, 375), (224, 224), (86, 23, 328, 328)),
    ((256, 256), (224, 224), (16, 16, 224, 224)),
    ((100, 300), (10, 20), (6, 62, 88, 175)),
    ((1, 1), (4, 4), (0, 0, 1, 1)),
  ],
)
def test_the_centre_in_the_targets_proportions(size, target, box):
  assert crops.central_box(*size, *target) == box


@pytest.mark.parametrize('channels', [1, 3])
def test_a_part_is_cut_out_and_scaled(channels):
  image = np.random.default_rng(0).integers(
    0, 256, (12, 16, channels), np.uint8
  )
  part = image[2:10, 4:12]
  np.testing.assert_array_equal(crops.cut(image, (2, 4, 8, 8), 8, 8), part)
  # Shrunk, its pixels are the means of areas.
  means = part.reshape(4, 2, 4, 2, channels).mean(axis=(1, 3))
  small = crops.cut(image, (2, 4, 8, 8), 4, 4)
  assert small.dtype == np.uint8
  assert np.abs(small - means).max() <= 0.5
  # Enlarged, they lie between those of the part, and are not its blocks.
  large = crops.cut(image, (2, 4, 8, 8), 16, 16)
  assert large.shape == (16, 16, channels)
  assert (large[::2] != large[1::2]).mean() > 0.5
