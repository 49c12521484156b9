"""Sets in .npz files: their names for arrays, and what they may not hold."""

import numpy as np
import pytest
from pictures import draw

from cbkd_jax import data
from cbkd_jax.errors import UserError

IMAGES, LABELS = draw(0, (20, 6, 4)), np.arange(20) % 3
TEST_IMAGES, TEST_LABELS = draw(1, (5, 6, 4)), np.arange(5) % 2


def load(path, **changes):
  return data.load(data.Wanted('npz', str(path), **changes))


def refused(path, **changes):
  """The error's message, which must be one line."""
  with pytest.raises(UserError) as error:
    load(path, **changes)
  assert '\n' not in str(error.value)
  return str(error.value)


def same(split, images, labels):
  """Whether the split has these examples, in any order."""
  images = images.reshape(len(images), 6, 4, -1)
  expected = sorted((i.tobytes(), int(n)) for i, n in zip(images, labels))
  found = zip(split.images, split.labels)
  assert split.images.shape == images.shape
  assert sorted((i.tobytes(), int(n)) for i, n in found) == expected


@pytest.mark.parametrize(
  ('images', 'labels', 'column'),
  [
    ('{}_images', '{}_labels', True),
    ('{}_images', '{}_labels', False),
    ('x_{}', 'y_{}', False),
  ],
)
def test_one_file_by_its_names(tmp_path, images, labels, column):
  arrays = {
    images.format('train'): IMAGES,
    labels.format('train'): LABELS[:, None] if column else LABELS,
    images.format('val'): TEST_IMAGES[:, ::-1],
    labels.format('val'): TEST_LABELS.astype(np.uint8),
    images.format('test'): TEST_IMAGES,
    labels.format('test'): TEST_LABELS,
    'other': np.zeros(3),
  }
  np.savez_compressed(tmp_path / 'a.npz', **arrays)
  found = load(tmp_path / 'a.npz', classes=3, train_size=20)
  assert found.class_names == ('0', '1', '2')
  same(found.train, IMAGES, LABELS)
  same(found.test, TEST_IMAGES, TEST_LABELS)
  found = load(tmp_path / 'a.npz', test_split='val', image_shape=(6, 4, 3))
  grey = np.repeat(TEST_IMAGES[:, ::-1, :, None], 3, axis=-1)
  same(found.test, grey, TEST_LABELS)


def test_a_file_per_split_and_a_single_one(tmp_path):
  names = np.array(['cat', 'dog', 'eel'])
  colours = draw(2, (20, 6, 4, 3))
  one = tmp_path / 'train.npz'
  np.savez(one, images=colours, labels=LABELS, class_names=names)
  # The same classes, in another order.
  np.savez(
    tmp_path / 'test.npz',
    images=draw(3, (5, 6, 4, 3)),
    labels=TEST_LABELS,
    class_names=names[[1, 0]],
  )
  found = load(tmp_path)
  assert found.class_names == ('cat', 'dog', 'eel')
  same(found.train, colours, LABELS)
  same(found.test, draw(3, (5, 6, 4, 3)), 1 - TEST_LABELS)
  message = refused(one)
  assert "has 'train' and slices" in message
  assert "data.test_split = 'train[80%:]' divide it" in message
  found = load(one, train_split='train[:80%]', test_split='train[80%:]')
  assert np.bincount(found.train.labels).tolist() == [6, 5, 5]
  assert np.bincount(found.test.labels).tolist() == [1, 2, 1]


def test_numbers_of_channels(tmp_path):
  images = draw(0, (20, 6, 4, 5))
  np.savez(tmp_path / 'a.npz', images=images, labels=LABELS)
  whole = {'test_split': 'train'}
  found = load(tmp_path / 'a.npz', image_shape=(6, 4, 5), **whole)
  same(found.train, images, LABELS)
  message = refused(tmp_path / 'a.npz', image_shape=(6, 4, 3), **whole)
  assert 'data.image_shape asks for 3 channel(s), but ' in message
  assert f'{tmp_path}/a.npz: images[' in message


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'images': IMAGES / 255},
      'images are float64, but must be uint8, 0 to 255',
    ),
    (
      {'images': IMAGES.astype(np.int64)},
      'images are int64, but must be uint8',
    ),
    (
      {'images': IMAGES[:, 0]},
      'images have the shape (20, 4), but must have [n',
    ),
    ({'images': IMAGES[:0]}, 'images have the shape (0, 6, 4)'),
    (
      {'images': np.array([{}] * 20)},
      'cannot be read: Object arrays cannot be',
    ),
    (
      {'labels': LABELS[:19]},
      'labels have the shape (19,), but must have one l',
    ),
    ({'labels': np.eye(20)}, 'labels have the shape (20, 20)'),
    ({'labels': LABELS / 2}, 'labels are float64, but must be integers from 0'),
    ({'labels': LABELS > 1}, 'labels are bool, but must be integers from 0'),
    ({'labels': LABELS.astype(str)}, 'labels are <U21, but must be integers'),
    (
      {'labels': LABELS - 1},
      'labels are from -1 to 1, but must be integers fro',
    ),
    ({'labels': None}, 'has images, but no labels'),
    ({'images': None}, 'must hold train_images and train_labels, x_train and'),
    ({'class_names': ['a', 'b']}, 'has a label 2, but only 2 class_names'),
    ({'class_names': ['a', 'b', 'a']}, 'class_names has a name twice'),
    ({'class_names': [1, 2, 3]}, 'class_names must be strings, one per class'),
  ],
)
def test_wrong_arrays_are_one_line(tmp_path, changes, message):
  arrays = {'images': IMAGES, 'labels': LABELS} | changes
  arrays = {k: v for k, v in arrays.items() if v is not None}
  np.savez(tmp_path / 'a.npz', **arrays)
  found = refused(tmp_path / 'a.npz', test_split='train')
  assert message in found
  assert str(tmp_path / 'a.npz') in found


def test_wrong_files_are_one_line(tmp_path):
  assert refused(tmp_path / 'x').endswith('no such file or directory')
  assert 'must hold SPLIT.npz with images and labels' in refused(tmp_path)
  path = tmp_path / 'a.npz'
  np.savez_compressed(path, images=IMAGES, labels=LABELS)
  whole = path.read_bytes()
  for content in (
    b'',
    b'text',
    whole[:200],
    whole[:99] + b'?' * 99 + whole[198:],
  ):
    path.write_bytes(content)
    assert f'{path}: cannot be read: ' in refused(path, test_split='train')
  with path.open('wb') as file:
    np.save(file, IMAGES)
  assert 'is no .npz file, but a single array' in refused(path)
  # A class that the train split has none of.
  np.savez(
    path, x_train=IMAGES, y_train=LABELS, x_test=IMAGES, y_test=LABELS + 1
  )
  assert "has a class '3' that data.train_split lacks" in refused(path)
