"""Hugging Face's sets on disk: columns by their types, no network."""

import pickle

import numpy as np
import pytest
from pictures import draw, png

from cbkd_jax import data
from cbkd_jax.data import hf, own
from cbkd_jax.errors import UserError

datasets = pytest.importorskip('datasets', reason='needs datasets')
NAMES = ['dog', 'cat', 'eel']


def images(n):
  return [draw(i) for i in range(n)]


def rows(n, names=NAMES, label='label', contents=None, **more):
  """A split of n examples."""
  if contents is None:
    contents = [{'bytes': png(i), 'path': None} for i in images(n)]
  columns = {'image': contents, label: [i % 3 for i in range(n)]}
  features = {
    'image': datasets.Image(),
    label: datasets.ClassLabel(names=names),
  }
  for name, (feature, values) in more.items():
    features[name], columns[name] = feature, values
  return datasets.Dataset.from_dict(columns, datasets.Features(features))


def wanted(directory, **changes):
  return data.Wanted('hf', str(directory), **changes)


def refused(directory, **changes):
  """The error's message, which must be one line."""
  with pytest.raises(UserError) as error:
    data.load(wanted(directory, **changes))
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  directory = tmp_path_factory.mktemp('saved')
  datasets.disable_progress_bars()
  splits = {'train': rows(12), 'test': rows(5)}
  datasets.DatasetDict(splits).save_to_disk(directory)
  return directory


def same(split, n):
  expected = sorted((x.tobytes(), i % 3) for i, x in enumerate(images(n)))
  found = zip(split.images, split.labels)
  assert sorted((i.tobytes(), int(label)) for i, label in found) == expected


def test_what_save_to_disk_wrote(saved):
  found = data.load(wanted(saved, classes=3, train_size=12))
  assert found.class_names == tuple(NAMES)
  same(found.train, 12)
  same(found.test, 5)
  # Streams are the same; readers get paths, not pixels.
  asked = wanted(saved, image_shape=(6, 4, 3), validation_size=4)
  resident, stream = data.load(asked), data.stream(asked)
  again = pickle.loads(pickle.dumps(stream))
  for name in 'train', 'validation', 'test':
    whole = getattr(resident, name)
    read, labels = getattr(again, name).read(np.arange(len(whole)))
    np.testing.assert_array_equal(read, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)
  opened = own.open_splits(asked)[1]
  assert len(pickle.dumps(opened.records.rows)) < 4000


def test_a_single_split_and_rows_that_were_chosen(tmp_path):
  rows(24).select(range(12)).save_to_disk(tmp_path)
  found = data.load(
    wanted(tmp_path, train_split='train[:75%]', test_split='train[75%:]')
  )
  assert np.bincount(found.train.labels).tolist() == [3, 3, 3]
  assert np.bincount(found.test.labels).tolist() == [1, 1, 1]
  found = data.load(wanted(tmp_path, test_split='train'))
  same(found.train, 12)


def test_parquet_files_as_the_hub_has_them(tmp_path, monkeypatch):
  cache = str(tmp_path / 'cache')
  monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', cache)
  for name, n in ('train', 12), ('test', 5):
    path = tmp_path / 'set' / 'data' / f'{name}-00000-of-00001.parquet'
    path.parent.mkdir(parents=True, exist_ok=True)
    rows(n).to_parquet(path)
  found = data.load(wanted(tmp_path / 'set'))
  assert found.class_names == tuple(NAMES)
  same(found.train, 12)
  same(found.test, 5)


def test_images_in_files_of_their_own(tmp_path):
  contents = []
  for i, image in enumerate(images(6)):
    (tmp_path / f'{i}.png').write_bytes(png(image))
    contents.append({'bytes': None, 'path': str(tmp_path / f'{i}.png')})
  whole = rows(6, contents=contents)
  found = hf.Set({'train': whole}, wanted(tmp_path)).open('train')
  for read, image in zip(found.images(range(6)), images(6)):
    np.testing.assert_array_equal(read, image)
  (tmp_path / '2.png').unlink()
  with pytest.raises(UserError, match=r'train: row 2: .*2\.png: No such file'):
    found.images([2])


def test_two_labels_must_be_chosen_from(tmp_path):
  coarse = datasets.ClassLabel(names=['x', 'y'])
  labels = [i // 6 for i in range(12)]
  rows(12, label='fine_label', coarse_label=(coarse, labels)).save_to_disk(
    tmp_path
  )
  whole = {'test_split': 'train'}
  message = refused(tmp_path, **whole)
  assert message == (
    "data.label_column = '': must be one of fine_label, coarse_label, which "
    f'{tmp_path}: train has'
  )
  assert (
    "data.label_column = 'label': must be one of fine_label, co"
    in refused(tmp_path, label_column='label', **whole)
  )
  found = data.load(wanted(tmp_path, label_column='coarse_label', **whole))
  assert found.class_names == ('x', 'y')
  expected = sorted((x.tobytes(), i // 6) for i, x in enumerate(images(12)))
  split = zip(found.train.images, found.train.labels)
  assert sorted((i.tobytes(), int(label)) for i, label in split) == expected
  assert "data.image_column = 'img': must be one of image" in refused(
    tmp_path, image_column='img', label_column='fine_label', **whole
  )


def test_sets_that_lack_something(tmp_path):
  whole = {'test_split': 'train'}
  rows(3).remove_columns('label').save_to_disk(tmp_path / 'a')
  assert refused(tmp_path / 'a', **whole) == (
    f"data.label_column = '': {tmp_path}/a: train must have a column of the "
    'type ClassLabel, but has image (Image)'
  )
  rows(3).cast_column('label', datasets.Value('int64')).save_to_disk(
    tmp_path / 'b'
  )
  assert 'but has image (Image), label (Value)' in refused(
    tmp_path / 'b', **whole
  )
  for name, labels in ('c', [0, None, 1]), ('d', [0, -1, 1]):
    more = {'other': (datasets.ClassLabel(names=NAMES), labels)}
    rows(3, **more).save_to_disk(tmp_path / name)
    assert 'has a label -1: choose a split that' in refused(
      tmp_path / name, label_column='other', **whole
    )
  contents = [{'bytes': c, 'path': None} for c in (png(draw(0)), b'text')]
  rows(2, contents=contents).save_to_disk(tmp_path / 'e')
  assert refused(tmp_path / 'e', **whole).startswith(
    f'{tmp_path}/e: train: row 1: no image of 8 or 16 bits'
  )
  rows(2, contents=[None, contents[0]]).save_to_disk(tmp_path / 'f')
  assert 'train: row 0: has no image' in refused(tmp_path / 'f', **whole)


def test_directories_that_hold_no_set(saved, tmp_path, monkeypatch):
  assert refused(tmp_path / 'x').endswith("/x': no such directory")
  assert 'holds neither what save_to_disk writes' in refused(tmp_path)
  (tmp_path / 'state.json').write_text('{')
  assert 'datasets cannot read it: ' in refused(tmp_path)
  monkeypatch.setattr(hf.importlib.util, 'find_spec', lambda _: None)
  assert refused(saved) == (
    "data.name = 'hf': needs Hugging Face's datasets; pip install "
    "'datasets>=5.2,<6'"
  )
