"""Networks as TFLite files; TensorFlow is an extra."""

import sys

import jax
import numpy as np
import pytest
import shipped

from cbkd_jax.errors import UserError
from cbkd_jax.formats import tflite

pytestmark = pytest.mark.usefixtures('quick_compilation')

REASON = "needs tensorflow and ai-edge-litert, the extra 'tflite'"


def test_the_file_gives_what_jax_gives(tmp_path):
  pytest.importorskip('tensorflow', reason=REASON)
  litert = pytest.importorskip('ai_edge_litert.interpreter', reason=REASON)
  network = shipped.network('resnet8', (8, 8, 1), normalise=True)
  path = tmp_path / 'x.tflite'
  tflite.write(network, path)
  run = tflite.load(path, {})
  for count in (1, 3):
    images = shipped.images(network, count)
    expected = np.asarray(jax.jit(network.function)(network.arrays, images))
    np.testing.assert_allclose(run(images), expected, rtol=1e-5, atol=1e-5)
  interpreter = litert.Interpreter(str(path))
  assert interpreter.get_signature_list() == {
    'serving_default': {'inputs': ['images'], 'outputs': ['logits']}
  }
  (given,) = interpreter.get_input_details()
  assert given['shape'].tolist() == [1, 8, 8, 1]
  assert given['dtype'] == np.uint8


def test_a_damaged_file(tmp_path):
  pytest.importorskip('ai_edge_litert', reason=REASON)
  path = tmp_path / 'x.tflite'
  path.write_bytes(b'nothing')
  with pytest.raises(UserError, match=r'x\.tflite: LiteRT cannot read it'):
    tflite.load(path, {})


def test_without_its_libraries_the_message_names_the_extra(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, 'tensorflow', None)
  monkeypatch.setitem(sys.modules, 'ai_edge_litert.interpreter', None)
  path = tmp_path / 'x.tflite'
  network = shipped.network('resnet8', (8, 8, 1), normalise=True)
  with pytest.raises(UserError, match=r"needs tensorflow; .*extra 'tflite'"):
    tflite.write(network, path)
  assert not path.exists()
  with pytest.raises(UserError, match=r"needs ai_edge_litert.*extra 'tflite'"):
    tflite.load(path, {})
