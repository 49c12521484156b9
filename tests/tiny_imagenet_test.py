"""The Tiny ImageNet builder: prepared from small zips, and from broken ones."""

import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cbkd_jax import data
from cbkd_jax.data import tiny_imagenet

MINI = Path(__file__).parents[1] / '../shared/data/tiny-imagenet-mini.zip'
TOP = 'tiny-imagenet-200/'
# Not sorted, as in the official zip.
WNIDS = ('n03', 'n01', 'n02')


def jpeg(value, shape=(64, 64, 3)):
  """An image of one colour, whose first channel (blue) is darker."""
  image = np.full(shape, value, np.uint8)
  if len(shape) == 3:
    image[..., 0] //= 2
  ok, encoded = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 100])
  assert ok
  return encoded.tobytes()


def files():
  """A small zip's files: four train images per class, two for validation.

  An image's colour is its identity, in steps that survive JPEG: red is 20 to
  130 for training, 140 to 190 for validation.
  """
  result = {'wnids.txt': '\n'.join(WNIDS) + '\n', 'words.txt': ''}
  annotations = ''
  for k, wnid in enumerate(WNIDS):
    for i in range(4):
      # One image of the first class is grey.
      shape = (64, 64) if k == i == 0 else (64, 64, 3)
      result[f'train/{wnid}/images/{wnid}_{i}.JPEG'] = jpeg(
        20 + 10 * (4 * k + i), shape
      )
    result[f'train/{wnid}/{wnid}_boxes.txt'] = ''
  # The order of the images is not that of the classes.
  for i in range(6):
    result[f'val/images/val_{i}.JPEG'] = jpeg(140 + 10 * i)
    annotations += f'val_{i}.JPEG\t{WNIDS[i % 3]}\t0\t0\t63\t63\n'
  result['val/val_annotations.txt'] = annotations
  result['test/images/test_0.JPEG'] = jpeg(0)
  return {TOP + name: content for name, content in result.items()}


def write(path, contents):
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return str(path)


def load(directory, **changes):
  wanted = data.Wanted(
    'tiny_imagenet', str(directory), test_split='validation', **changes
  )
  return data.load(wanted)


def test_prepare_and_load(tmp_path, capsys):
  archive = write(tmp_path / 'any_name.zip', files())
  directory = tmp_path / 'a' / 'b'
  command = [f'--zip={archive}', f'--data_dir={directory}']
  assert tiny_imagenet.main(command) == 0
  output = capsys.readouterr()
  assert output.err == ''
  assert tiny_imagenet._sha256(archive) in output.out
  assert '3 classes\ntrain: 12 examples\nvalidation: 6 examples' in output.out
  # Nothing beside the set, and nothing half-written.
  assert [p.name for p in directory.iterdir()] == ['tiny_imagenet']
  assert [p.name for p in (directory / 'tiny_imagenet').iterdir()] == ['1.0.0']

  dataset = load(directory, classes=3, image_shape=(64, 64, 3))
  assert dataset.class_names == WNIDS
  train = {}
  for image, label in zip(dataset.train.images, dataset.train.labels):
    red, green, blue = image[32, 32].astype(int)
    # RGB, not BGR; the grey image has three equal channels.
    grey = abs(red - 20) <= 2
    np.testing.assert_allclose(green, red, atol=2)
    np.testing.assert_allclose(blue, red if grey else red / 2, atol=2)
    train[round(red, -1)] = label
  assert train == {20 + 10 * (4 * k + i): k for k in range(3) for i in range(4)}
  test = dataset.test
  assert {
    round(int(image[32, 32, 0]), -1): label
    for image, label in zip(test.images, test.labels)
  } == {140 + 10 * i: i % 3 for i in range(6)}

  # Again: says so. With another zip: refuses, and the set stays.
  assert tiny_imagenet.main(command) == 0
  assert 'already prepared' in capsys.readouterr().out
  other = write(tmp_path / 'other.zip', files() | {TOP + 'words.txt': 'x'})
  command = [f'--zip={other}', f'--data_dir={directory}']
  assert tiny_imagenet.main(command) == 2
  assert 'another zip' in capsys.readouterr().err
  assert len(load(directory).train.labels) == 12


def without(name):
  return lambda all_files: all_files.pop(TOP + name)


def replaced(name, content):
  return lambda all_files: all_files.update({TOP + name: content})


ANNOTATIONS = 'val/val_annotations.txt'


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (without('wnids.txt'), 'no <folder>/wnids.txt'),
    (replaced('wnids.txt', '\n'), 'wnids.txt is empty'),
    (replaced('wnids.txt', 'n01\nn01\nn02\nn03'), 'names a class twice'),
    (replaced('wnids.txt', 'n01\nn02'), 'n03_0.JPEG is of no class'),
    (
      replaced('wnids.txt', 'n01\nn02\nn03\nn04'),
      f'no image in {TOP}train/n04',
    ),
    (replaced('wnids.txt', b'\xff\xfe'), 'cannot be read'),
    (without(ANNOTATIONS), f'no {TOP}{ANNOTATIONS}'),
    (replaced(ANNOTATIONS, ''), 'names 0 of 6 validation images'),
    (
      replaced(ANNOTATIONS, 'val_0.JPEG\tn01'),
      'names 1 of 6 validation images',
    ),
    (replaced(ANNOTATIONS, 'val_0.JPEG\tn09'), 'val_0.JPEG n09'),
    (replaced(ANNOTATIONS, 'val_0.JPEG'), 'val_0.JPEG'),
    (replaced(ANNOTATIONS, 'val_0.JPEG\tn01\n' * 2), 'named twice'),
    (without('val/images/val_3.JPEG'), 'val_3.JPEG n03'),
    (
      replaced('train/n01/images/n01_0.JPEG', b'text'),
      'n01_0.JPEG is no image',
    ),
    (replaced('train/n01/images/n01_0.JPEG', b''), 'n01_0.JPEG is no image'),
    (
      replaced('train/n01/images/n01_0.JPEG', jpeg(0, (32, 64, 3))),
      'n01_0.JPEG is (32, 64) pixels, not (64, 64)',
    ),
  ],
)
def test_a_zip_with_wrong_content(tmp_path, capsys, damage, message):
  contents = files()
  damage(contents)
  refuses(write(tmp_path / 'bad.zip', contents), tmp_path, capsys, message)


def cut(content):
  return content[: len(content) // 2]


def flip_a_bit(content):
  middle = content.index(b'n01_0.JPEG') + 300
  changed = bytes([content[middle] ^ 1])
  return content[:middle] + changed + content[middle + 1 :]


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (cut, 'not a zip file'),
    (flip_a_bit, 'Bad CRC-32'),
    (lambda _: b'', 'not a zip file'),
    (lambda _: b'no zip', 'not a zip file'),
  ],
)
def test_a_damaged_zip(tmp_path, capsys, damage, message):
  path = Path(write(tmp_path / 'bad.zip', files()))
  path.write_bytes(damage(path.read_bytes()))
  refuses(str(path), tmp_path, capsys, message)


def refuses(path, tmp_path, capsys, message):
  """Exit 2, one line on stderr, nothing left."""
  directory = tmp_path / 'data' / 'dir'
  command = [f'--zip={path}', f'--data_dir={directory}']
  assert tiny_imagenet.main(command) == 2
  error = capsys.readouterr().err
  assert message in error
  assert path in error
  assert error.count('\n') == 1
  assert not (tmp_path / 'data').exists()


def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, capsys):
  def full(*_):
    raise OSError('No space left on device')
    yield

  monkeypatch.setattr(tiny_imagenet.TinyImagenet, '_generate_examples', full)
  archive = write(tmp_path / 'tiny.zip', files())
  directory = tmp_path / 'data'
  assert (
    tiny_imagenet.main([f'--zip={archive}', f'--data_dir={directory}']) == 2
  )
  error = capsys.readouterr().err
  assert 'No space left' in error
  assert error.count('\n') == 1
  assert not directory.exists()
  # A directory that was there before stays.
  directory.mkdir()
  tiny_imagenet.main([f'--zip={archive}', f'--data_dir={directory}'])
  assert list(directory.iterdir()) == []


def test_no_such_zip(tmp_path, capsys):
  refuses(str(tmp_path / 'missing.zip'), tmp_path, capsys, 'No such file')
  refuses(str(tmp_path), tmp_path, capsys, 'Is a directory')


def test_the_directory_exists_but_holds_no_set(tmp_path, capsys):
  archive = write(tmp_path / 'tiny.zip', files())
  (tmp_path / 'tiny_imagenet' / '1.0.0').mkdir(parents=True)
  assert tiny_imagenet.main([f'--zip={archive}', f'--data_dir={tmp_path}']) == 2
  assert 'without dataset_info.json' in capsys.readouterr().err


def test_data_dir_is_a_file(tmp_path, capsys):
  archive = write(tmp_path / 'tiny.zip', files())
  assert tiny_imagenet.main([f'--zip={archive}', f'--data_dir={archive}']) == 2
  assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize(
  'command', [[], ['--zip=a.zip'], ['--zip=a', '--data_dir=b', '--other=1']]
)
def test_wrong_usage(command, capsys):
  with pytest.raises(SystemExit) as stopped:
    tiny_imagenet.main(command)
  assert stopped.value.code == 2
  assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.skipif(
  not MINI.exists(), reason='needs ../shared/data/tiny-imagenet-mini.zip'
)
def test_the_command_on_real_images(tmp_path):
  # As a user runs it: another process, where the module is __main__.
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'cbkd_jax.data.tiny_imagenet'),
      *(f'--zip={MINI}', f'--data_dir={tmp_path}'),
    ],
    capture_output=True,
    text=True,
    check=False,
    cwd=Path(__file__).parents[1],
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert 'd1ecf297249e0eda5628f4f4befbcfc7f63c40512dba3232571f52' in done.stdout

  dataset = load(
    tmp_path,
    classes=20,
    image_shape=(64, 64, 3),
    train_size=2000,
  )
  with zipfile.ZipFile(MINI) as archive:
    wnids = archive.read(TOP + 'wnids.txt').decode().split()
    annotations = dict(
      line.split('\t')[:2]
      for line in archive.read(TOP + ANNOTATIONS).decode().splitlines()
    )

    grey = 0
    train, test = {}, {}
    for entry in archive.namelist():
      if not entry.endswith('.JPEG'):
        continue
      encoded = np.frombuffer(archive.read(entry), np.uint8)
      grey += cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED).ndim == 2
      image = cv2.imdecode(encoded, cv2.IMREAD_COLOR)[..., ::-1].tobytes()
      _, split, wnid, *_, name = entry.split('/')
      if split == 'train':
        train[image] = wnids.index(wnid)
      else:
        test[image] = wnids.index(annotations[name])
  assert grey == 37
  assert dataset.class_names == tuple(wnids)
  for split, expected in (dataset.train, train), (dataset.test, test):
    assert len(split.labels) == len(expected)
    assert {
      image.tobytes(): label for image, label in zip(split.images, split.labels)
    } == expected
  assert (len(train), len(test)) == (2000, 400)
