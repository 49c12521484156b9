"""The finished student on disk, without a run around it."""

import json

import jax
import numpy as np
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import blocks, experiment, student
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.errors import UserError

AUGMENTATION = Augmentation(pad=2, flip=True, mean=(0.3,), std=(0.2,))
NAMES = tuple('abcdefghij')


@pytest.fixture
def saved(tmp_path):
  """A workdir with a student of arbitrary weights; network and weights."""
  exp = experiment.build(tiny_run.values())
  network = exp.network(exp.stages[-1], local=True)
  variables = tiny.draw(network)
  student.save(tmp_path / 'student', exp, variables, AUGMENTATION, NAMES)
  return tmp_path, network, variables


def test_what_was_saved_is_read_bit_for_bit(saved):
  directory, network, variables = saved
  found, weights, augmentation = student.read(directory / 'student')
  assert found == network
  assert tiny.same(weights, variables)
  assert augmentation == Augmentation(0, False, (0.3,), (0.2,))


def test_model_json_says_how_to_rebuild_it(saved):
  directory, _, _ = saved
  model = json.loads((directory / 'student' / 'model.json').read_text())
  assert model == {
    'family': 'tiny_run:model',
    'blocks': 3,
    'inherit': 1,
    'widths': [4, 3, 4],
    'reduce': [0, 2, 3],
    'units': [1, 1, 1],
    'input_shape': [8, 8, 1],
    'classes': 10,
    'class_names': list(NAMES),
    'compute_dtype': 'float32',
    'mean': [0.3],
    'std': [0.2],
  }


def test_classes_without_names_are_numbers(saved):
  """An older version's model.json has none."""
  path = saved[0] / 'student' / 'model.json'
  assert student.read_model(path.parent)['class_names'] == list(NAMES)
  model = json.loads(path.read_text())
  del model['class_names']
  path.write_text(json.dumps(model))
  assert student.read_model(path.parent)['class_names'] == list('0123456789')


def test_a_function_from_raw_images_to_logits(saved):
  directory, network, variables = saved
  images, _ = tiny.images(5)
  logits = cbkd_jax.load_student(str(directory))(images)
  assert (logits.shape, logits.dtype) == ((5, 10), np.float32)
  x = (images.astype(np.float64) / 255 - 0.3) / 0.2
  expected = jax.jit(lambda x: blocks.logits(network, variables, x))(
    x.astype(np.float32)
  )
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_second_save_replaces_the_first(saved):
  directory, network, _ = saved
  exp = experiment.build(tiny_run.values())
  other = tiny.draw(network, seed=1)
  student.save(directory / 'student', exp, other, AUGMENTATION, NAMES)
  assert tiny.same(student.read(directory / 'student')[1], other)


def test_no_student_and_one_that_does_not_fit(saved, tmp_path):
  with pytest.raises(UserError, match='nowhere: holds no finished student'):
    cbkd_jax.load_student(tmp_path / 'nowhere')
  directory, _, _ = saved
  path = directory / 'student' / 'model.json'
  model = json.loads(path.read_text())
  path.write_text(json.dumps({**model, 'widths': [4, 5, 4]}))
  with pytest.raises(
    UserError, match=r'does not fit: .*block_1.* \(3,\) there'
  ):
    cbkd_jax.load_student(directory)
