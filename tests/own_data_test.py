"""Images of a user: folders, their order, both pipelines, kinds of files."""

import contextlib
import io
import os
import pickle

import cli
import numpy as np
import PIL.Image
import pytest
import tiny_run
from pictures import draw, png, tree, write

from cbkd_jax import data, experiment, summary
from cbkd_jax.data import decoding, folder, own, streaming
from cbkd_jax.data.wanted import OWN
from cbkd_jax.errors import UserError

COUNTS = {'train/b': 9, 'train/a': 6, 'train/ä c': 12, 'val/b': 2, 'val/ä c': 3}


def wanted(directory, **changes):
  return data.Wanted(
    'folder', str(directory), **{'test_split': 'val'} | changes
  )


def load(directory, **changes):
  return data.load(wanted(directory, **changes))


def refused(directory, pipeline=data.load, **changes):
  """The error's message, which must be one line."""
  with pytest.raises(UserError) as error:
    pipeline(wanted(directory, **changes))
  assert '\n' not in str(error.value)
  return str(error.value)


def pairs(split):
  return sorted(
    (i.tobytes(), int(n)) for i, n in zip(split.images, split.labels)
  )


@pytest.fixture(scope='module')
def toys(tmp_path_factory):
  return write(tmp_path_factory.mktemp('toys'), tree(COUNTS))


# What is read.


def test_pixels_and_labels_are_those_of_the_files(toys):
  found = load(toys, classes=3, train_size=27, image_shape=(6, 4, 3))
  assert found.name == f'folder {toys}'
  assert found.class_names == ('a', 'b', 'ä c')
  for split, name in (found.train, 'train'), (found.test, 'val'):
    assert pairs(split) == sorted(
      (image.tobytes(), found.class_names.index(path.split('/')[1]))
      for path, image in tree(COUNTS).items()
      if path.startswith(name)
    )


def test_the_digits_from_files_are_the_digits(tmp_path):
  digits = data.load(data.Wanted('digits', train_split='train[:50]'))
  for name in 'train', 'test':
    split = getattr(digits, name)
    for i, (image, label) in enumerate(zip(split.images, split.labels)):
      write(tmp_path, {f'{name}/{label}/{i}.png': image})
  found = load(tmp_path, test_split='test', image_shape=(8, 8, 1))
  assert found.class_names == digits.class_names
  for name in 'train', 'test':
    assert pairs(getattr(found, name)) == pairs(getattr(digits, name))


def test_what_is_not_seen_and_what_is(tmp_path):
  images = tree({'x/a': 1, 'x/b': 1})
  write(tmp_path / 'other', tree({'b': 1}))
  write(
    tmp_path,
    images
    | {'x/a/LARGE.PNG': draw(1), 'x/a/grey.Png': draw(2, (6, 4, 1))}
    | {'x/a/.DS_Store': b'?', 'x/a/._0.png': b'?', 'x/b/Thumbs.db': b'?'}
    | {'__MACOSX/x/a/0.png': b'?', '.cache/c/0.png': b'?', 'x/read.me': b'?'}
    | {'x/.hidden/0.png': b'?', 'about.txt': b'?'},
  )
  (tmp_path / 'x' / 'linked').symlink_to(tmp_path / 'other' / 'b')
  (tmp_path / 'x' / 'b' / 'link.png').symlink_to(tmp_path / 'x' / 'a' / '0.png')
  found = load(tmp_path, train_split='x', test_split='x', image_shape=None)
  assert found.class_names == ('a', 'b', 'linked')
  assert np.bincount(found.train.labels).tolist() == [3, 2, 1]
  grey = np.repeat(draw(2, (6, 4, 1)), 3, axis=-1)
  assert (grey.tobytes(), 0) in pairs(found.train)
  assert (images['x/a/0.png'].tobytes(), 1) in pairs(found.train)


def _file(image, kind, **options):
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def test_every_kind_of_file():
  """Each as what it shows, three channels of 8 bits."""
  image = np.repeat(np.repeat(draw(0, (3, 4, 3)), 8, 0), 8, 1)
  picture = PIL.Image.fromarray(image)
  exif = PIL.Image.Exif()
  exif[0x112] = 6  # to be turned right by a quarter
  alpha = PIL.Image.fromarray(np.dstack([image, draw(1, image.shape[:2])]))
  palette = picture.convert('P', palette=PIL.Image.Palette.ADAPTIVE)
  turned = picture.rotate(180)
  deep = image.astype(np.uint16) * 256 + 255
  files = {
    'png': (png(image), image, 0),
    'rgba': (_file(alpha, 'PNG'), image, 0),
    'palette': (_file(palette, 'PNG'), image, 8),
    '16 bits': (png(deep), image, 0),
    'webp': (_file(picture, 'WEBP', lossless=True), image, 0),
    'bmp': (_file(picture, 'BMP'), image, 0),
    'tiff': (_file(picture, 'TIFF'), image, 0),
    'jpeg': (_file(picture, 'JPEG', quality=100, subsampling=0), image, 4),
    'cmyk': (
      _file(picture.convert('CMYK'), 'JPEG', quality=100, subsampling=0),
      *(image, 8),
    ),
    'turned': (
      _file(picture, 'JPEG', quality=100, subsampling=0, exif=exif),
      *(np.rot90(image, -1), 4),
    ),
    'animation': (
      _file(palette, 'GIF', save_all=True, append_images=[turned]),
      *(image, 8),
    ),
  }
  for name, (content, expected, tolerance) in files.items():
    found = decoding.decode(content, 3, name)
    assert found.shape == expected.shape, name
    assert found.dtype == np.uint8
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= tolerance, name


def test_colours_become_grey_and_grey_colours():
  image, grey = draw(0), draw(1, (6, 4, 1))
  luma = np.round(image @ [0.299, 0.587, 0.114])[..., None]
  found = decoding.decode(png(image), 1, '')
  assert found.shape == (6, 4, 1)
  assert np.abs(found - luma).max() <= 1
  np.testing.assert_array_equal(decoding.decode(png(grey), 1, ''), grey)
  for channels in 3, None:
    np.testing.assert_array_equal(
      decoding.decode(png(grey), channels, ''), np.repeat(grey, 3, -1)
    )


# Order and slices.


@pytest.mark.parametrize('counts', [[5, 5, 5], [3, 0, 97, 2], [80, 80], [9]])
def test_every_slice_has_the_classes_in_their_proportions(counts):
  labels = np.repeat(np.arange(len(counts)), counts)
  labels = np.random.default_rng(0).permutation(labels)
  order = own.evenly_mixed(
    labels, [str(i).encode() for i in range(len(labels))]
  )
  assert sorted(order) == list(range(len(labels)))
  mixed = labels[order]
  for start in range(len(labels)):
    for stop in range(start + 1, len(labels) + 1):
      seen = np.bincount(mixed[start:stop], minlength=len(counts))
      share = np.array(counts) * (stop - start) / len(labels)
      assert np.abs(seen - share).max() <= len(counts)


def test_the_order_is_random_and_never_changes():
  labels = np.repeat([0, 1], [12, 6])
  order = own.evenly_mixed(labels, [f'{i}.png'.encode() for i in range(18)])
  expected = [1, 15, 10, 8, 16, 3, 9, 13, 6, 0, 12, 4, 11, 17, 2, 7, 14, 5]
  assert order.tolist() == expected
  # Other names, another order.
  other = own.evenly_mixed(labels, [f'{i}.jpg'.encode() for i in range(18)])
  assert other.tolist() != expected


def test_the_order_is_not_the_disks(toys, tmp_path, monkeypatch):
  whole = load(toys)
  write(tmp_path, dict(sorted(tree(COUNTS).items(), reverse=True)))
  scandir = os.scandir

  @contextlib.contextmanager
  def backwards(path):
    with scandir(path) as entries:
      yield iter(sorted(entries, key=lambda e: e.name, reverse=True))

  monkeypatch.setattr(folder.os, 'scandir', backwards)
  found = load(tmp_path)
  np.testing.assert_array_equal(found.train.images, whole.train.images)
  np.testing.assert_array_equal(found.train.labels, whole.train.labels)


def test_a_tree_without_splits_is_divided_class_by_class(tmp_path):
  whole = tree({'a': 20, 'b': 10, 'c': 5})
  write(tmp_path, whole)
  found = load(tmp_path, train_split='train[:80%]', test_split='train[80%:]')
  assert np.bincount(found.train.labels).tolist() == [16, 8, 4]
  assert np.bincount(found.test.labels).tolist() == [4, 2, 1]
  images = sorted(image.tobytes() for image in whole.values())
  both = pairs(found.train) + pairs(found.test)
  assert sorted(image for image, _ in both) == images
  # So is what is held out; and whole splits may be cut too.
  whole = load(tmp_path, train_split='train', test_split='train[-7:]')
  held = load(
    tmp_path, test_split='train', validation_size=7, train_size=28
  ).validation
  assert np.bincount(held.labels).tolist() == [4, 2, 1]
  np.testing.assert_array_equal(held.images, whole.test.images)
  np.testing.assert_array_equal(held.images, whole.train.images[-7:])


# Streams.


def batches(split, workers, steps=4, first_step=0):
  source = streaming.Stream(split, 5, 10, np.arange(10), steps)
  iterator = streaming.read_ahead(
    source, workers=workers, first_step=first_step
  )
  with contextlib.closing(iterator):
    return [
      [np.array(x) for x in streaming.next_batch(iterator)]
      for _ in range(first_step, steps)
    ]


def npz_of(directory):
  images, labels = {}, {}
  for split in 'train', 'val':
    found = [
      (image, ['a', 'b', 'ä c'].index(path.split('/')[1]))
      for path, image in tree(COUNTS).items()
      if path.startswith(split)
    ]
    images[f'{split}_images'], labels[f'{split}_labels'] = zip(*found)
  path = directory / 'toys.npz'
  np.savez(path, **images, **labels, class_names=['a', 'b', 'ä c'])
  return path


@pytest.mark.parametrize(('name', 'workers'), [('folder', 2), ('npz', 0)])
def test_a_stream_is_the_resident_set(toys, tmp_path, name, workers):
  directory = toys if name == 'folder' else npz_of(tmp_path)
  asked = data.Wanted(
    name,
    str(directory),
    test_split='val',
    validation_size=3,
    image_shape=(6, 4, 3),
  )
  resident, stream = data.load(asked), data.stream(asked)
  assert stream.class_names == resident.class_names
  ids = streaming.sampler.indices(5, 24, 10, 0, 4)
  found = batches(stream.train, workers)
  for chosen, (images, labels) in zip(ids, found, strict=True):
    np.testing.assert_array_equal(images, resident.train.images[chosen])
    np.testing.assert_array_equal(labels, resident.train.labels[chosen])
  for split in 'validation', 'test':
    whole = getattr(resident, split)
    images, labels = getattr(stream, split).read(np.arange(len(whole)))
    np.testing.assert_array_equal(images, whole.images)
    np.testing.assert_array_equal(labels, whole.labels)


def test_images_of_many_sizes(tmp_path):
  images = tree({'train/a': 4, 'val/a': 2}, (20, 30, 3))
  images |= tree({'train/b': 4, 'val/b': 2}, (31, 17, 3))
  write(tmp_path, images)
  shape = (8, 10, 3)
  message = refused(tmp_path)
  assert 'different sizes, (' in message
  assert f'({tmp_path}/train/' in message
  assert message.endswith('.png): set data.resize, which is 0')
  assert load(tmp_path, resize=5).train.images.shape == (8, 5, 5, 3)
  found = data.stream(
    wanted(tmp_path, crop='random_resized', image_shape=shape)
  )
  # Crops are of other positions, so of other seeds in each epoch.
  whole = batches(found.train, 0, 2)
  assert len({i.tobytes() for batch, _ in whole for i in batch}) == 20
  found = data.stream(wanted(tmp_path, resize=5, image_shape=(5, 5, 3)))
  np.testing.assert_array_equal(
    found.train.read(np.arange(8))[0], load(tmp_path, resize=5).train.images
  )
  # Without either, the first of another size is named when its turn comes.
  first = load(tmp_path, resize=5).train.labels[0]
  size = [(20, 30, 3), (31, 17, 3)][first]
  found = data.stream(wanted(tmp_path, image_shape=size, test_split='train'))
  with pytest.raises(UserError) as error:
    found.train.read(np.arange(8))
  assert f'but {tmp_path}/train/{"ba"[first]}/' in str(error.value)


def test_a_file_that_is_no_image_is_named_when_its_turn_comes(tmp_path):
  write(tmp_path, tree({'train/a': 8, 'train/b': 8, 'val/a': 1}))
  last = own.open_splits(wanted(tmp_path))[1]
  bad = last.records.where(last.numbers[-1])
  for content in b'text', b'', png(draw(0))[:60]:
    with open(bad, 'wb') as file:
      file.write(content)
    assert refused(tmp_path).startswith(f'{bad}: no image of 8 or 16 bits')
    found = data.stream(wanted(tmp_path, image_shape=(6, 4, 3)))
    found.train.read(np.arange(15))
    with pytest.raises(UserError, match=f'^{bad}: no image of 8 or 16 bits'):
      found.train.read(np.arange(16))
  os.unlink(bad)
  with pytest.raises(UserError, match=f'^{bad}: No such file'):
    found.train.read(np.arange(16))


def test_sources_are_small_when_they_go_to_readers(toys, tmp_path):
  for name, directory in ('folder', toys), ('npz', npz_of(tmp_path)):
    _, train, _ = own.open_splits(
      data.Wanted(name, str(directory), test_split='val')
    )
    sent = pickle.dumps(train)
    assert len(sent) < 2000
    assert len(sent) < train.records.images(range(27))[0].nbytes * 27
    ours, theirs = (s.__getitems__([3, 1]) for s in (train, pickle.loads(sent)))
    for one, two in zip(ours, theirs):
      np.testing.assert_array_equal(one['image'], two['image'])
      assert (one['label'], one['where']) == (two['label'], two['where'])


# What is not as it must be.


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    ({}, "'{}': has no class folders; there must be CLASS/IMAGE or train/CLA"),
    ({'0.png': 0}, '{}/0.png: lies in no class folder; must be {}/CLASS/0.png'),
    ({'a/0.png': 0, 'x.JPG': 0}, '{}/x.JPG: lies in no class folder'),
    ({'train/0.png': 0, 'val/0.png': 0}, "'{}': has no class folders; there"),
    (
      {'train/a/0.png': 0, 'train/b/0.png': 0, 'val/0.png': 0},
      '{}/val: has no class folders; there must be one for each class, val/CLA',
    ),
    (
      {
        'train/a/0.png': 0,
        'train/b/0.png': 0,
        'val/c/0.png': 0,
        'val/a/0.png': 0,
      },
      "data.test_split = 'val': has a class 'c' that data.train_split lacks",
    ),
    (
      {'train/a/0.png': 0, 'val/a/0.png': 0},
      "folder {}: has one class only, 'a', but must have at least 2",
    ),
    (
      {'train/a/0.png': 0, 'train/b/.x': 0, 'val/a/0.png': 0},
      '{}/train/b: is an empty class',
    ),
    (
      {'train/a/0.png': 0, 'train/a/notes.txt': 0, 'val/a/0.png': 0},
      '{}/train/a/notes.txt: no image by its name; must end with one of .jpg',
    ),
    (
      {'train/a/0.png': 0, 'train/b/more/0.png': 0, 'val/a/0.png': 0},
      '{}/train/b/more: is a folder; images must lie directly in the folder of',
    ),
    (
      {'a/0.png': 0, 'b/0.png': 0},
      "data.test_split = 'val', but folder {} has 'train' and slices like "
      "'train[:100]' or 'train[10%:-10%]': data.train_split = 'train[:80%]' "
      "and data.test_split = 'train[80%:]' divide it",
    ),
    (
      {'train/a/0.png': 0, 'train/b/0.png': 0, 'test/a/0.png': 0},
      "data.test_split = 'val', but folder {} has 'test', 'train' and slices",
    ),
  ],
)
def test_a_wrong_layout_is_one_line(tmp_path, images, message):
  write(tmp_path, {path: draw(0) for path in images})
  assert message.replace('{}', str(tmp_path)) in refused(tmp_path)


def test_other_wrong_things_are_one_line(toys, tmp_path):
  missing = tmp_path / 'missing'
  assert refused(missing) == f"data.dir = '{missing}': no such folder"
  (tmp_path / 'file.zip').touch()
  assert 'a file, not a folder' in refused(tmp_path / 'file.zip')
  write(tmp_path, tree({'a': 1, 'b': 1}))
  (tmp_path / 'a' / 'x.png').symlink_to(missing)
  whole = {'test_split': 'train'}
  assert 'x.png: is no file, or a link to' in refused(tmp_path, **whole)
  (tmp_path / 'b').chmod(0)
  if not os.access(tmp_path / 'b', os.R_OK):
    assert 'Permission denied' in refused(tmp_path, **whole)
  (tmp_path / 'b').chmod(0o700)
  with pytest.raises(UserError, match=r"^data\.dir = '': must be where the"):
    data.load(data.Wanted('folder'))
  for expression in 'train[:28]', 'train[:0]', 'train[a:]', 'trian', '':
    message = refused(toys, train_split=expression)
    assert message.startswith(f'data.train_split = {expression!r}')
  assert 'asks for 4 channel(s), but ' in refused(toys, image_shape=(6, 4, 4))


def test_what_differs_is_told_at_once_with_the_flags_to_copy(toys):
  said = {'classes': 10, 'train_size': 50, 'image_shape': (32, 32, 3)}
  expected = (
    f'data.classes = 10, but folder {toys} has 3, data.train_size = 50, but '
    f"folder {toys} has 25 in data.train_split = 'train' after holding out "
    'data.validation_size = 2, data.image_shape = (32, 32, 3), but folder '
    f'{toys} has (6, 4, 3); to take it as it is: --config.data.classes=3 '
    "--config.data.train_size=25 --config.data.image_shape='(6,4,3)'"
  )
  for pipeline in data.load, data.stream:
    message = refused(toys, pipeline, validation_size=2, **said)
    assert message == expected


def test_names_are_known_without_data():
  for name in OWN:
    data.check_name(name, '')
    with pytest.raises(UserError, match=f"but '{name}' has no configs"):
      data.check_name(f'{name}:1.0.0', '')


# The command.


def inspected(directory, *more):
  return cli.call(
    'cbkd_jax.inspect_data',
    '--config=configs/folder.py',
    f'--config.data.dir={directory}',
    *more,
  )


def test_inspect_data_prints_what_a_run_must_be_given(toys):
  ended = inspected(
    toys, '--config.data.resize=0', '--config.data.validation_size=2'
  )
  assert (ended.code, ended.err) == (0, '')
  lines = ended.out.splitlines()
  found = load(toys, validation_size=2)
  counts = np.bincount(found.train.labels)
  assert lines[:4] == [
    f'folder {toys}: 25 train, 2 held out, 5 test',
    f'3 classes, with training images: a {counts[0]}, b {counts[1]}, ä c '
    f'{counts[2]}',
    '6 to 6 pixels high, 4 to 4 wide; 0 of 30 are grey',
    '',
  ]
  pixels = found.train.images / 255
  mean, std = (
    str(tuple(np.round(m, 4).tolist())).replace(' ', '')
    for m in (pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)))
  )
  assert lines[4:] == [
    '--config.data.classes=3 --config.data.train_size=25 '
    "--config.data.image_shape='(6,4,3)' "
    f"--config.data.mean='{mean}' --config.data.std='{std}'"
  ]


def test_inspect_data_of_grey_images_of_many_sizes(tmp_path):
  write(tmp_path, tree({'train/a': 40, 'val/a': 1}, (6, 4, 1)))
  write(tmp_path, tree({'train/b': 3}, (9, 3, 1)))
  ended = inspected(tmp_path, '--config.data.resize=0')
  assert ended.code == 0
  assert '6 to 9 pixels high, 3 to 4 wide; 44 of 44 are grey' in ended.out
  assert '--config.data.classes=2 --config.data.train_size=43\n' in ended.out
  assert 'The images differ in size. Give --config.data.resize' in ended.out
  ended = inspected(tmp_path, '--config.data.resize=3')
  assert "--config.data.image_shape='(3,3,1)'" in ended.out
  ended = inspected(
    tmp_path,
    '--config.data.resize=0',
    '--config.data.crop=random_resized',
    '--config.data.image_shape=(2,5,3)',
  )
  assert "--config.data.image_shape='(2,5,1)'" in ended.out
  write(tmp_path, {'train/b/0.png': b'?'})
  ended = inspected(tmp_path)
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.startswith(f'error: {tmp_path}/train/b/0.png: no image')


def test_a_path_with_brackets_is_said_as_it_is():
  values = tiny_run.values(data__name='folder', data__dir='/a/[red]b[/x]')
  console = tiny_run.console()
  summary.show_plan(experiment.build(values), console)
  table = summary.new_table(data.Wanted.of(values['data']).title)
  table.add_column('-' * 40)
  console.print(table)
  shown = console.file.getvalue()
  assert shown.count('folder /a/[red]b[/x]') == 2
