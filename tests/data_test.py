"""Reading data sets: pixels, labels, splits, and what cannot be read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from toy_set import toy, toy_images

from cbkd_jax import data
from cbkd_jax.data import digits
from cbkd_jax.errors import UserError

SHARED = Path(__file__).parents[1] / '../shared/data/tfds'


def load(name, **changes):
  return data.load(data.Wanted(name, **changes))


def refused(name, **changes):
  """The error's message, which must be one line."""
  with pytest.raises(UserError) as error:
    load(name, **changes)
  assert '\n' not in str(error.value)
  return str(error.value)


# Digits.


def test_digits_are_all_there_and_stratified():
  from sklearn.datasets import load_digits

  dataset = load(
    'digits',
    classes=10,
    image_shape=(8, 8, 1),
    train_size=1437,
  )
  assert dataset.class_names == tuple('0123456789')
  assert dataset.validation is None
  train, test = dataset.train, dataset.test
  assert train.images.dtype == np.uint8
  assert train.labels.dtype == np.int32
  assert len(test.labels) == 360
  # A fifth of each class.
  whole = np.bincount(load_digits().target)
  assert np.abs(np.bincount(test.labels) - whole / 5).max() < 1
  # Shuffled.
  assert len(set(train.labels[:30])) > 5

  # Together they are the original, value 16 being white.
  images = np.concatenate([train.images, test.images]).reshape(1797, 64)
  labels = np.concatenate([train.labels, test.labels])
  raw = load_digits()
  ours = sorted(zip(map(tuple, images.tolist()), labels.tolist()))
  pixels = [tuple(round(v * 255 / 16) for v in x) for x in raw.data.tolist()]
  assert ours == sorted(zip(pixels, raw.target.tolist()))
  assert images.max() == 255


def test_digits_splits_never_change():
  dataset = load('digits')
  start, test_start = dataset.train.labels[:12], dataset.test.labels[:12]
  assert start.tolist() == [3, 9, 1, 3, 1, 9, 4, 4, 2, 8, 3, 5]
  assert test_start.tolist() == [7, 6, 3, 7, 7, 3, 2, 8, 9, 3, 2, 6]


@pytest.mark.parametrize(
  ('expression', 'start', 'stop'),
  [
    ('train[:100]', 0, 100),
    ('train[100:]', 100, 1437),
    ('train[10:20]', 10, 20),
    ('train[-37:]', 1400, 1437),
    ('train[:-37]', 0, 1400),
    ('train[:10%]', 0, 144),
    ('train[33%:67%]', 474, 963),
    ('train[-10%:]', 1293, 1437),
    ('train[:]', 0, 1437),
  ],
)
def test_digits_slices(expression, start, stop):
  whole, part = load('digits').train, load('digits', train_split=expression)
  np.testing.assert_array_equal(part.train.images, whole.images[start:stop])
  np.testing.assert_array_equal(part.train.labels, whole.labels[start:stop])


@pytest.mark.parametrize(
  'expression',
  [
    *('', 'trian', 'train[', 'train[a:]', 'train[5]', 'train+test'),
    # These select nothing, or more than there is.
    *('train[:0]', 'train[5:2]', 'train[:1438]', 'train[101%:]'),
    'train[-1438:]',
  ],
)
def test_digits_wrong_slices(expression):
  assert f'data.train_split = {expression!r}' in refused(
    'digits', train_split=expression
  )


def test_validation_is_the_end_of_train():
  whole = load('digits')
  dataset = load('digits', validation_size=37, train_size=1400)
  np.testing.assert_array_equal(
    dataset.validation.images, whole.train.images[1400:]
  )
  np.testing.assert_array_equal(
    dataset.validation.labels, whole.train.labels[1400:]
  )
  np.testing.assert_array_equal(dataset.train.images, whole.train.images[:1400])
  np.testing.assert_array_equal(dataset.test.images, whole.test.images)


def test_resize_averages_areas():
  images = load('digits').train.images.astype(float)
  means = images.reshape(-1, 4, 2, 4, 2, 1).mean(axis=(2, 4))
  small = load('digits', resize=4, image_shape=(4, 4, 1)).train.images
  assert small.shape == (1437, 4, 4, 1)
  assert np.abs(small - means).max() <= 0.5


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'classes': 100}, 'data.classes = 100, but digits has 10'),
    (
      {'image_shape': (32, 32, 3)},
      'data.image_shape = (32, 32, 3), but digits has (8, 8, 1)',
    ),
    (
      {'image_shape': (8, 8, 1), 'resize': 4},
      'data.image_shape = (8, 8, 1), but digits has (4, 4, 1) with '
      'data.resize = 4',
    ),
    (
      {'train_size': 1437, 'validation_size': 100},
      'data.train_size = 1437, but digits has 1337 in data.train_split = '
      "'train' after holding out data.validation_size = 100",
    ),
    (
      {'validation_size': 50, 'train_split': 'train[:50]'},
      'data.validation_size = 50, but digits has only 50 examples',
    ),
    ({'validation_size': -1}, 'data.validation_size = -1'),
    ({'resize': -4}, 'data.resize = -4'),
  ],
)
def test_data_that_is_not_what_the_config_says(changes, message):
  assert message in refused('digits', **changes)


# Prepared TFDS sets.


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
  directory = tmp_path_factory.mktemp('toys')
  toy(directory)
  return directory


@pytest.fixture
def own_toys(toys, tmp_path):
  """A copy to damage."""
  shutil.copytree(toys, tmp_path / 'toys')
  return tmp_path / 'toys'


def test_prepared_set_pixel_by_pixel(toys):
  dataset = load(
    'toy',
    dir=str(toys),
    classes=3,
    image_shape=(6, 4, 3),
    train_size=20,
  )
  assert dataset.class_names == ('b', 'a', 'c')
  images = toy_images(25)
  for split, members in (
    (dataset.train, range(20)),
    (dataset.test, range(20, 25)),
  ):
    found = {
      image.tobytes(): label for image, label in zip(split.images, split.labels)
    }
    assert found == {images[i].tobytes(): i % 3 for i in members}
    assert split.images.dtype == np.uint8
    assert split.labels.dtype == np.int32


def test_more_records_than_are_decoded_at_once(toys, monkeypatch):
  whole = load('toy', dir=str(toys))
  monkeypatch.setattr(data, '_BATCH', 7)
  batched = load('toy', dir=str(toys))
  np.testing.assert_array_equal(batched.train.images, whole.train.images)
  np.testing.assert_array_equal(batched.train.labels, whole.train.labels)


def test_prepared_set_slices(toys):
  whole = load('toy', dir=str(toys)).train.images
  for expression, part in {
    'train[:5]': whole[:5],
    'train[25%:-25%]': whole[5:15],
    'train[-3:]': whole[-3:],
    'train[:2]+train[4:6]': whole[[0, 1, 4, 5]],
  }.items():
    dataset = load('toy', dir=str(toys), train_split=expression)
    np.testing.assert_array_equal(dataset.train.images, part)


@pytest.mark.parametrize(
  ('expression', 'reason'),
  [
    ('trian', 'has the splits train, test'),
    ('', 'has the splits train, test'),
    ('train[', 'has the splits train, test'),
    ('train[:21]', 'incompatible with 20 examples'),
    ('train[5:2]', 'selects no example'),
    ('train[:0]', 'selects no example'),
  ],
)
def test_prepared_set_wrong_splits(toys, expression, reason):
  for field in 'train_split', 'test_split':
    message = refused('toy', dir=str(toys), **{field: expression})
    assert f'data.{field} = {expression!r}' in message
    assert reason in message


def test_where_prepared_sets_are_looked_for(toys, monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(toys))
  assert len(load('toy').train.labels) == 20
  monkeypatch.delenv('TFDS_DATA_DIR')
  monkeypatch.setenv('HOME', str(tmp_path))
  (tmp_path / 'tensorflow_datasets').symlink_to(toys)
  assert len(load('toy').train.labels) == 20
  assert len(load('toy', dir='~/tensorflow_datasets').train.labels) == 20


def test_versions_and_configs(own_toys):
  home = own_toys / 'toy'
  for version, names in {'3.0.2': 'xyz', '3.0.10': 'uvw'}.items():
    shutil.copytree(home / '1.0.0', home / version)
    (home / version / 'label.labels.txt').write_text('\n'.join(names))
  # What an interrupted preparation leaves.
  shutil.copytree(home / '1.0.0', home / '9.0.0.incompleteABC')
  names = {
    name: ''.join(load(name, dir=str(own_toys)).class_names)
    for name in ('toy', 'toy:3.0.2', 'toy:1.0.0')
  }
  assert names == {'toy': 'uvw', 'toy:3.0.2': 'xyz', 'toy:1.0.0': 'bac'}
  message = refused('toy:2.0.0', dir=str(own_toys))
  assert "data.name = 'toy:2.0.0'" in message
  assert '3.0.10' in message

  shutil.copytree(home / '1.0.0', own_toys / 'other' / 'small' / '1.0.0')
  for name in 'other/small', 'other/small:1.0.0':
    assert len(load(name, dir=str(own_toys)).train.labels) == 20
  assert 'other/small' in refused('other', dir=str(own_toys))
  assert 'is not prepared' in refused('other/big', dir=str(own_toys))


def test_grey_images_keep_the_declared_channels(tmp_path):
  grey = list(toy_images(25, (6, 4, 1)))
  for channels in 1, 3:
    directory = tmp_path / str(channels)
    toy(directory, images=grey, shape=(6, 4, channels))
    images = load('toy', dir=str(directory)).train.images
    assert images.shape == (20, 6, 4, channels)
    assert {i[..., :1].tobytes() for i in images} == {
      g.tobytes() for g in grey[:20]
    }
    np.testing.assert_array_equal(
      images, np.repeat(images[..., :1], channels, 3)
    )


def test_images_of_different_sizes_need_resize(tmp_path):
  images = [*toy_images(20), *toy_images(5, (6, 8, 3))]
  for name, order in {'mixed': images[::-1], 'split': images}.items():
    toy(tmp_path / name, images=order, shape=(None, None, 3))
    message = refused('toy', dir=str(tmp_path / name))
    assert '(6, 4, 3)' in message
    assert '(6, 8, 3)' in message
    assert 'set data.resize, which is 0' in message
    dataset = load('toy', dir=str(tmp_path / name), resize=2)
    assert dataset.train.images.shape == (20, 2, 2, 3)


def test_sets_without_what_is_needed(tmp_path):
  toy(tmp_path / 'a', label=tfds.features.Scalar(np.int64))
  message = refused('toy', dir=str(tmp_path / 'a'))
  assert (
    "a class 'label', but it has image: Image(shape=(6, 4, 3), dtype=uint8), "
    'label: Scalar(shape=(), dtype=int64)' in message
  )
  toy(tmp_path / 'b', labels=[0] * 24 + [-1])
  assert 'labels from -1 to 0' in refused('toy', dir=str(tmp_path / 'b'))


def test_damaged_directories(own_toys):
  directory = own_toys / 'toy' / '1.0.0'
  records = next(directory.glob('toy-test.array_record*'))
  info = directory / 'dataset_info.json'
  features = directory / 'features.json'

  def message_with(path, content):
    before = path.read_bytes()
    path.unlink()
    if content is not None:
      path.write_bytes(content)
    message = refused('toy', dir=str(own_toys))
    path.write_bytes(before)
    assert str(directory.parent) in message
    return message

  whole = records.read_bytes()
  changed = bytearray(whole)
  changed[200:210] = bytes(10)
  for content in whole[: len(whole) // 2], b'', bytes(changed), None:
    assert 'cannot read' in message_with(records, content)
  for path in info, features:
    assert 'cannot read' in message_with(path, path.read_bytes()[:99])
  assert 'cannot read' in message_with(features, None)
  assert 'is not prepared' in message_with(info, None)
  other = json.loads(info.read_text()) | {'fileFormat': 'tfrecord'}
  message = message_with(info, json.dumps(other).encode())
  assert 'tfrecord' in message
  assert "file_format='array_record'" in message
  assert len(load('toy', dir=str(own_toys)).test.labels) == 5


# Names.


def test_known_names(toys):
  for name in (
    *('digits', 'tiny_imagenet', 'toy', 'cifar100', 'mnist:3.0.1'),
    *('imagenet_resized/32x32', 'imagenet_resized/32x32:0.1.0'),
  ):
    data.check_name(name, str(toys))
  # A directory need not exist for a name to be known.
  data.check_name('cifar10', str(toys / 'missing'))


@pytest.mark.parametrize(
  ('name', 'hint'),
  [
    ('digit', "; did you mean 'digits'?"),
    ('tiny_imagnet', "; did you mean 'tiny_imagenet'?"),
    ('cifar10O', "; did you mean 'cifar10'?"),
    ('toys', "; did you mean 'toy'?"),
    ('qqqqqqqqqqqqqq', "in TFDS's catalogue nor in"),
    ('', 'must look like'),
    ('a/b/c', 'must look like'),
    ('cifar10:latest', 'must look like'),
    ('../toy', 'must look like'),
    ('digits:1.0.0', "'digits' has no configs"),
  ],
)
def test_unknown_names(toys, name, hint):
  with pytest.raises(UserError) as error:
    data.check_name(name, str(toys))
  assert f'data.name = {name!r}' in str(error.value)
  assert hint in str(error.value)
  assert refused(name, dir=str(toys)) == str(error.value)


@pytest.mark.parametrize(
  ('name', 'command'),
  [
    ('tiny_imagenet', 'python -m cbkd_jax.data.tiny_imagenet --zip='),
    ('cifar100', "tfds.builder('cifar100', data_dir="),
  ],
)
def test_unprepared_sets_say_how_to_get_them(tmp_path, name, command):
  message = refused(name, dir=str(tmp_path))
  assert f'{tmp_path}/{name}/*/dataset_info.json' in message
  assert command in message
  assert 'TFDS_DATA_DIR or --config.data.dir' in message
  assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
  not SHARED.exists(), reason='needs CIFAR-10 in ../shared/data/tfds'
)
def test_cifar10():
  dataset = load(
    'cifar10',
    dir=str(SHARED),
    train_split='train[:200]',
    test_split='test[-100:]',
    classes=10,
    image_shape=(32, 32, 3),
  )
  assert dataset.class_names == (
    *('airplane', 'automobile', 'bird', 'cat', 'deer'),
    *('dog', 'frog', 'horse', 'ship', 'truck'),
  )
  # This copy's ids name the class: 'train_cat_2970'.
  builder = tfds.builder_from_directory(SHARED / 'cifar10' / '3.0.2')
  for split, expression in (
    (dataset.train, 'train[:200]'),
    (dataset.test, 'test[-100:]'),
  ):
    records = builder.as_data_source(expression)
    classes = [r['id'].decode().split('_')[1] for r in records]
    assert [dataset.class_names[n] for n in split.labels] == classes
  # RGB: the mean over all images is 0.491, 0.482, 0.447.
  np.testing.assert_allclose(
    dataset.train.images.mean((0, 1, 2)) / 255, (0.491, 0.482, 0.447), atol=0.03
  )
  red, _, blue = np.moveaxis(dataset.train.images.astype(int), 3, 0)
  assert (red - blue).mean() > 5


def test_digits_module_names_the_field():
  with pytest.raises(UserError, match=r'data\.test_split'):
    digits.open_split('nothing', 'data.test_split')
