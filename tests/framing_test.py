"""Any image becomes what evaluation would have made of it."""

import json

import cv2
import numpy as np
import pictures
import pytest

from cbkd_jax import data
from cbkd_jax.data.framing import Framing
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.errors import UserError

RESIZED = {'image_shape': (4, 4, 3), 'crop': 'none'}
CROPPED = {'image_shape': (4, 3, 1), 'crop': 'random_resized'}


@pytest.mark.parametrize(('fields', 'resize'), [(RESIZED, 4), (CROPPED, 0)])
def test_it_is_what_evaluation_sees(tmp_path, fields, resize):
  """Of images that shrink, and one that is enlarged."""
  images = {
    f'{split}/{name}/0.png': pictures.draw(i, (11 - 8 * i, 7 - 3 * i, 3))
    for i, name in enumerate(('cat', 'dog'))
    for split in ('train', 'test')
  }
  pictures.write(tmp_path, images)
  said = Wanted('folder', str(tmp_path), resize=resize, **fields)
  expected = data.stream(said).test.read(np.arange(2))
  framing = Framing.from_json(
    json.loads(json.dumps(Framing.of(fields).as_json()))
  )
  assert framing == Framing.of(fields)
  for image, label in zip(*expected):
    name = ('cat', 'dog')[label]
    content = (tmp_path / f'test/{name}/0.png').read_bytes()
    np.testing.assert_array_equal(framing.read(content, name), image)


def test_an_image_of_the_networks_own_size_is_unchanged():
  framing = Framing.of({'image_shape': (8, 8, 1), 'crop': 'none'})
  digit = pictures.draw(0, (8, 8, 1))
  content = cv2.imencode('.png', digit)[1].tobytes()
  np.testing.assert_array_equal(framing.read(content, 'digit'), digit)


def test_another_share_of_the_centre_counts():
  image = pictures.draw(0, (8, 8, 3))
  framing = Framing((4, 4, 3), 0.5)
  np.testing.assert_array_equal(framing.frame(image), image[2:6, 2:6])


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (RESIZED, ('RGB', 'the whole image is scaled to 4x4,')),
    (CROPPED, ('luma', '0.875', 'proportions 4:3', 'scaled to 4x3,')),
  ],
)
def test_a_sentence_says_it(fields, words):
  said = Framing.of(fields).as_json()['description']
  assert all(word in said for word in words)


def test_no_image_is_named():
  with pytest.raises(UserError, match='no_image: no image'):
    Framing((8, 8, 1), None).read(b'no', 'no_image')
