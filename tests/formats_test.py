"""Files that hold a network: what is read is what was written."""

import json
import shutil

import jax
import numpy as np
import pytest
import safetensors
import shipped
import tiny
from jax import export
from safetensors.numpy import save_file

from cbkd_jax import deployed, formats, student
from cbkd_jax.errors import UserError
from cbkd_jax.formats import safetensors as safetensors_
from cbkd_jax.formats import stablehlo

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGES = tiny.images(5)[0]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A directory of files, logits, what was written; the workdir is gone."""
  directory = tmp_path_factory.mktemp('formats')
  shipped.write(directory / 'run')
  expected = np.asarray(student.load_student(directory / 'run')(IMAGES))
  whole = deployed.student_of(directory / 'run', normalise=True)
  plain = deployed.student_of(directory / 'run', normalise=False, fold=False)
  limit = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, limit)
  jax.config.update(limit, 10)  # as it is but in tests
  stablehlo.write(whole, directory / 'whole.stablehlo')
  assert getattr(jax.config, limit) == 10
  jax.config.update(limit, before)
  safetensors_.write(whole, directory / 'whole.safetensors')
  safetensors_.write(plain, directory / 'plain.safetensors')
  shutil.rmtree(directory / 'run')
  return directory, expected, plain, whole


def test_stablehlo_at_any_batch_size(files):
  directory, expected, *_ = files
  run = stablehlo.load(directory / 'whole.stablehlo', {})
  for images, wanted in ((IMAGES, expected), (IMAGES[2:4], expected[2:4])):
    found = run(images)
    assert (type(found), found.dtype) == (np.ndarray, np.float32)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_stablehlo_is_one_file_for_all_platforms(files):
  content = (files[0] / 'whole.stablehlo').read_bytes()
  found = export.deserialize(bytearray(content))
  assert found.platforms == ('cpu', 'cuda', 'tpu')
  (images,) = found.in_avals
  assert str(images) == 'uint8[batch,8,8,1]'
  assert b'.py' not in content  # nor where the code was


@pytest.mark.parametrize('name', ['whole', 'plain'])
def test_safetensors_from_the_file_alone(files, name):
  directory, expected, plain, _ = files
  images = plain.prepare(IMAGES) if name == 'plain' else IMAGES
  found = safetensors_.load(directory / f'{name}.safetensors', {})(images)
  assert (type(found), found.dtype) == (np.ndarray, np.float32)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_safetensors_say_what_they_are(files):
  directory, _, plain, whole = files
  with safetensors.safe_open(directory / 'plain.safetensors', 'numpy') as file:
    metadata, names = file.metadata(), set(file.keys())
    kernel = file.get_tensor('params/block_1/inner/unit_0/conv/kernel')
    assert 'batch_stats/block_1/inner/unit_0/norm/var' in names
  assert np.array_equal(
    kernel,
    plain.arrays['params']['block_1']['inner']['unit_0']['conv']['kernel'],
  )
  assert kernel.shape == (3, 3, 2, 3)
  found = json.loads(metadata['cbkd_jax'])
  assert (found['normalised'], found['norms']) == (False, None)
  assert found['model'] == json.loads(json.dumps(plain.model))
  with safetensors.safe_open(directory / 'whole.safetensors', 'numpy') as file:
    names = set(file.keys())
  assert 'params/block_1/inner/unit_0/conv/bias' in names
  assert not [name for name in names if 'norm' in name]
  read = safetensors_.read(directory / 'whole.safetensors')
  assert read.norms == whole.norms
  assert tiny.same(read.arrays, whole.arrays)


def test_safetensors_of_others(tmp_path):
  path = tmp_path / 'x.safetensors'
  save_file({'weight': np.zeros(2)}, path)
  with pytest.raises(UserError, match='does not say what network it is'):
    safetensors_.read(path)
  path.write_bytes(b'no tensors')
  with pytest.raises(UserError, match='cannot be read as a safetensors file'):
    safetensors_.read(path)


def test_names():
  formats.check(['onnx', 'stablehlo'])
  with pytest.raises(
    UserError,
    match=r"--format=onnx,tflight: 'tflight' is not known; did you mean "
    r"'tflite'\?; known: stablehlo, onnx, tflite, safetensors",
  ):
    formats.check(['onnx', 'tflight'])
  with pytest.raises(UserError, match="--format=: '' is not known"):
    formats.check([])
