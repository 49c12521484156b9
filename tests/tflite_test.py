"""Networks as TFLite files; TensorFlow is an extra."""

import importlib
import sys

import jax
import numpy as np
import pytest
import random_network

from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

REASON = "needs tensorflow and ai-edge-litert, the extra 'tflite'"


@pytest.fixture(scope='module')
def tflite():
  for library in 'tensorflow', 'ai_edge_litert':
    pytest.importorskip(library, reason=REASON)
  return importlib.import_module('cbkd_jax.formats.tflite')


def test_the_file_gives_what_jax_gives(tflite, tmp_path):
  from ai_edge_litert.interpreter import Interpreter

  network = random_network.network('resnet8', (8, 8, 1), normalise=True)
  path = tmp_path / 'x.tflite'
  tflite.write(network, path)
  run = tflite.load(path, {})
  for count in (1, 3):
    images = random_network.images(network, count)
    expected = np.asarray(jax.jit(network.function)(network.arrays, images))
    np.testing.assert_allclose(run(images), expected, rtol=1e-5, atol=1e-5)
  interpreter = Interpreter(str(path))
  assert interpreter.get_signature_list() == {
    'serving_default': {'inputs': ['images'], 'outputs': ['logits']}
  }
  (given,) = interpreter.get_input_details()
  assert given['shape'].tolist() == [tflite.BATCH, 8, 8, 1] == [1, 8, 8, 1]
  assert given['dtype'] == np.uint8


def test_a_damaged_file(tflite, tmp_path):
  path = tmp_path / 'x.tflite'
  path.write_bytes(b'nothing')
  with pytest.raises(UserError, match=r'x\.tflite: LiteRT cannot read it'):
    tflite.load(path, {})


@pytest.mark.parametrize('library', ['tensorflow', 'ai_edge_litert'])
def test_without_its_library_the_message_names_the_extra(library, monkeypatch):
  monkeypatch.delitem(sys.modules, 'cbkd_jax.formats.tflite', raising=False)
  for name in 'tensorflow', 'ai_edge_litert':
    monkeypatch.setitem(sys.modules, name, None if name == library else pytest)
  with pytest.raises(UserError, match=rf"needs {library}; .*extra 'tflite'"):
    importlib.import_module('cbkd_jax.formats.tflite')
