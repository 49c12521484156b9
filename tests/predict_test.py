"""`cbkd_jax.predict` says of image files what the network says of arrays."""

import json
import os
import shutil

import cli
import cv2
import numpy as np
import pictures
import pytest
import rich.console
import shipped
from scipy import special

from cbkd_jax import classification, exporting, student
from cbkd_jax.classification import Classifier
from cbkd_jax.data import digits
from cbkd_jax.data.framing import Framing
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

COUNT = 5
GREY = Framing((8, 8, 1), None)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A workdir, and a directory of digits beside it."""
  root = tmp_path_factory.mktemp('predict')
  images = digits.open_split(f'test[:{COUNT}]', '').images
  pictures.write(
    root / 'images',
    {
      f'{i}.png': cv2.imencode('.png', image)[1].tobytes()
      for i, image in enumerate(images)
    },
  )
  (root / 'images' / '.hidden.png').write_bytes(b'')
  (root / 'images' / 'notes.txt').write_text('')
  (root / 'images' / 'deeper').mkdir()
  shipped.write(root / 'run')
  return root / 'run', root / 'images', images


def _predict(*arguments):
  return cli.call('cbkd_jax.predict', *map(str, arguments))


def _lines(ended):
  assert (ended.code, ended.err) == (0, '')
  return [json.loads(line) for line in ended.out.splitlines()]


def test_files_are_classified_like_arrays(finished):
  """A directory, in batches of which the last one is filled up."""
  workdir, folder, images = finished
  found = _lines(
    _predict(folder, f'--workdir={workdir}', '--json', '--batch_size=3')
  )
  logits = np.asarray(student.load_student(workdir)(images), np.float64)
  expected = special.softmax(logits, axis=-1)
  assert len(found) == COUNT
  for i, line in enumerate(found):
    assert line['image'] == str(folder / f'{i}.png')
    rows = line['predictions']
    order = np.argsort(-expected[i])[:5].tolist()
    assert [row['label'] for row in rows] == order
    assert [row['class'] for row in rows] == [shipped.NAMES[k] for k in order]
    np.testing.assert_allclose(
      [row['probability'] for row in rows], expected[i][order], rtol=1e-5
    )


def test_an_exported_file_needs_no_workdir(finished, tmp_path):
  """It says the same of images of any kind."""
  workdir, folder, _ = finished
  larger = pictures.write(tmp_path, {'a.png': pictures.draw(3, (16, 24, 3))})
  images = folder / '2.png', folder / '0.png', larger / 'a.png'
  request = exporting.Request(('stablehlo',), examples=4)
  (path,) = exporting.export(workdir, request, rich.console.Console(quiet=True))
  for name in path.name, f'{path.name}.json':
    shutil.move(path.parent / name, tmp_path / name)
  model = tmp_path / path.name
  found = _lines(_predict(f'--model={model}', '--json', *images))
  expected = _lines(_predict(f'--workdir={workdir}', '--json', *images))
  assert len(found) == 3
  for one, other in zip(found, expected):
    assert one['image'] == other['image']
    for a, b in zip(one['predictions'], other['predictions']):
      assert (a['label'], a['class']) == (b['label'], b['class'])
      assert a['probability'] == pytest.approx(b['probability'], rel=1e-4)


def test_a_block_for_each_image(finished):
  """Flags may stand between the files; there are ten classes, not 20."""
  workdir, folder, images = finished
  first, second = folder / '1.png', folder / '0.png'
  ended = _predict(first, '--top=20', f'--workdir={workdir}', second)
  assert (ended.code, ended.err) == (0, '')
  lines = ended.out.splitlines()
  assert (lines[0], lines[11], lines[12]) == (str(first), '', str(second))
  assert len(lines) == 23
  logits = np.asarray(student.load_student(workdir)(images[1:2]), np.float64)
  best, expected = int(logits.argmax()), special.softmax(logits).max()
  assert lines[1] == f'  {100 * expected:6.2f}%  {shipped.NAMES[best]}'


def _fixed(rows, names):
  """A classifier with the logits `rows[first pixel]`."""
  return Classifier(lambda x: np.array(rows)[x[:, 0, 0, 0]], GREY, names)


def test_the_most_probable_come_first_and_of_equals_the_lower(tmp_path):
  pictures.write(tmp_path, {'0.png': np.zeros((8, 8, 1), np.uint8)})
  rows = [[0.0, np.log(2), np.log(5), np.log(2)]]
  (found,) = classification.classify(
    _fixed(rows, tuple('wxyz')), [str(tmp_path / '0.png')], top=3, batch_size=9
  )
  assert found.labels == (2, 1, 3)
  assert found.class_names == ('y', 'x', 'z')
  assert found.probabilities == pytest.approx((0.5, 0.2, 0.2))


def test_batches_are_of_one_size(tmp_path):
  """So one program is compiled, whatever can't be read."""
  names = [f'{i}.png' for i in range(7)]
  pictures.write(tmp_path, {n: pictures.draw(0, (8, 8, 1)) for n in names})
  (tmp_path / '4.png').write_bytes(b'')
  seen = []

  def logits(images):
    seen.append(images.shape)
    return np.zeros((len(images), 2))

  found = classification.classify(
    Classifier(logits, GREY, ('x', 'y')),
    [str(tmp_path / name) for name in names],
    top=1,
    batch_size=3,
  )
  images = []
  with pytest.raises(UserError, match=r'^1 of 7 images left out: .*4\.png: no'):
    images.extend(os.path.basename(prediction.image) for prediction in found)
  assert seen == [(3, 8, 8, 1)] * 3
  assert images == [name for name in names if name != '4.png']


def test_all_but_the_unreadable_images_are_classified(finished, tmp_path):
  workdir, folder, _ = finished
  bad = [tmp_path / f'{i}.png' for i in range(12)]
  for path in bad:
    path.write_bytes(b'no image')
  ended = _predict(
    *(f'--workdir={workdir}', '--json', bad[0], folder / '0.png', *bad[1:])
  )
  assert ended.code == 2
  (line,) = ended.out.splitlines()
  assert json.loads(line)['image'] == str(folder / '0.png')
  assert ended.err.count('\n') == 1
  assert f'12 of 13 images left out: {bad[0]}: no image of' in ended.err
  assert f'; likewise {bad[1]}, ' in ended.err
  assert ended.err.endswith(f'{bad[9]}, ...\n')


def test_an_image_of_another_size_and_in_colours(finished, tmp_path):
  """As OpenCV makes it grey and small."""
  workdir, _, _ = finished
  image = pictures.draw(3, (16, 24, 3))
  path = pictures.write(tmp_path, {'a.png': image}) / 'a.png'
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA)
  (found,) = _lines(_predict(path, f'--workdir={workdir}', '--json', '--top=1'))
  logits = np.asarray(student.load_student(workdir)(small[None, ..., None]))
  (row,) = found['predictions']
  assert row['label'] == logits.argmax()
  assert row['probability'] == pytest.approx(special.softmax(logits).max())


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ([], 'give either --workdir or --model'),
    (['--workdir=/a', '--model=b', 'x.png'], 'give either --workdir or'),
    (['--workdir=/nowhere'], 'IMAGE... is missing: files, or'),
    (['--workdir=/nowhere', '/x.png'], '/x.png: No such file or directory'),
    (['--workdir=/nowhere', 'IMAGES'], '/nowhere: holds no finished student'),
    (['--model=/no.onnx', 'IMAGES'], '--model=/no.onnx: no such file'),
    (['--workdir=/nowhere', 'IMAGES', '--top=0'], '--top=0: must be at leas'),
    (['--workdir=/a', 'IMAGES/1.png', '--batch_size=0'], '--batch_size=0: mu'),
    (['--workdir=/a', 'IMAGES/deeper'], 'IMAGES/deeper: has no files that end'),
    (['--workdir=/a', 'IMAGES/1.png/x'], 'IMAGES/1.png/x: Not a directory'),
    (['--workdir=RUN', 'IMAGES/notes.txt'], 'error: IMAGES/notes.txt: no imag'),
  ],
)
def test_wrong_usage_is_one_line(finished, arguments, message):
  workdir, folder, _ = finished

  def placed(text):
    return text.replace('IMAGES', str(folder)).replace('RUN', str(workdir))

  ended = _predict(*map(placed, arguments))
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.count('\n') == 1
  assert placed(message) in ended.err
