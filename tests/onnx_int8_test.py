"""An int8 file: what it rounds, what it costs on digits, when it is refused."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import rich.console
import shipped

from cbkd_jax import (
  blocks,
  deployed,
  experiment,
  exported,
  exporting,
  student,
  workdir,
)
from cbkd_jax.blocks import Variables
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import UserError
from cbkd_jax.models.fake_quant import round_kernel

onnx = pytest.importorskip('onnx', reason="needs pip install '.[onnx]'")
onnxruntime = pytest.importorskip('onnxruntime', reason='likewise')

from cbkd_jax.formats import onnx as format_  # noqa: E402

pytestmark = pytest.mark.usefixtures('quick_compilation')

DIGITS = {
  'teacher__model': 'tiny_run:larger',
  'data__train_split': 'train',
  'data__test_split': 'test',
  'data__validation_size': 0,
  'data__train_size': 1437,
  'thaw__quantize': 'int8',
}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """A workdir whose student classifies by least squares on random features."""
  directory = tmp_path_factory.mktemp('int8') / 'run'
  network, variables = shipped.write(directory, **DIGITS)
  values = workdir.read_json(directory / 'config.json')
  train = experiment.load_data(values).train

  @jax.jit
  def pooled(images):
    x = normalise(images, shipped.AUGMENTATION)
    return blocks.run(network, variables, x)[0][-1].pooled

  features = np.asarray(pooled(train.images), np.float64)
  features = np.append(features, np.ones((len(features), 1)), axis=1)
  wanted = np.eye(10)[train.labels]
  gram = features.T @ features + 1e-3 * np.eye(features.shape[1])
  solved = np.linalg.solve(gram, features.T @ wanted).astype(np.float32)
  head = {'classifier': {'kernel': solved[:-1], 'bias': solved[-1]}}
  student.save(
    directory / 'student',
    experiment.build(values),
    Variables((*variables.params[:-1], head), variables.batch_stats),
    shipped.AUGMENTATION,
    shipped.NAMES,
  )
  return directory


def export(directory, **changes):
  console = rich.console.Console(file=io.StringIO(), width=80)
  request = exporting.Request(('onnx',), quantize='int8', **changes)
  paths = exporting.export(directory, request, console)
  return paths, console.file.getvalue()


@pytest.fixture(scope='module')
def done(directory):
  """The exported file, and what was printed."""
  (path,), text = export(directory)
  return path, text


def test_it_loses_less_than_two_points_on_digits(done):
  path, text = done
  assert path.name == 'student_int8.onnx'
  found = exported.load(path)
  accuracy, check = found.info['accuracy'], found.info['check']
  assert accuracy['examples'] == 360
  assert accuracy['before'] > 0.8
  assert accuracy['before'] - accuracy['after'] < 0.02
  assert check['top1_agreement'] > 0.94
  assert 1e-3 < check['max_logit_difference'] / check['largest_logit'] < 0.15
  info = found.info['quantization']
  assert (info['method'], info['calibration_images']) == ('MinMax', 512)
  assert info['trained'] == 'with rounding'
  assert found.info['bytes'] < info['float32_bytes']
  ratio = found.info['bytes'] / info['float32_bytes']
  assert f' bytes, {ratio:.2f} of the ' in text


def test_kernels_lie_on_the_grid_that_a_thaw_trains_on(directory, done):
  arrays = {
    tensor.name: onnx.numpy_helper.to_array(tensor)
    for tensor in onnx.load(done[0]).graph.initializer
  }
  assert not [n for n, a in arrays.items() if a.dtype == np.int8]
  found = {}
  for name, array in arrays.items():
    if name.endswith('_quantized') and array.dtype == np.uint8:
      scale = arrays[name.replace('_quantized', '_scale')]
      zero = arrays[name.replace('_quantized', '_zero_point')]
      assert (zero == 128).all()
      shape = (-1, *(1,) * (array.ndim - 1))
      if array.ndim == 2 and len(scale) == array.shape[1]:
        shape = (1, -1)
      steps = array.astype(np.float64) - 128
      found[name] = np.sort(steps * scale.reshape(shape), axis=None)
  network = deployed.student_of(directory, normalise=True)
  kernels = [
    leaf
    for path, leaf in jax.tree.leaves_with_path(network.arrays['params'])
    if path[-1].key == 'kernel'
  ]
  assert len(found) == len(kernels) == 6
  for kernel in kernels:
    rounded = np.sort(round_kernel(kernel), axis=None)
    assert any(
      len(own) == len(rounded)
      and np.allclose(own, rounded, rtol=1e-5, atol=1e-7)
      for own in found.values()
    )


def test_products_do_not_saturate(directory, done):
  """Operation by operation it says what it says in fused integers."""
  values = workdir.read_json(directory / 'config.json')
  images = experiment.load_data(values).test.images
  options = onnxruntime.SessionOptions()
  off = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
  options.graph_optimization_level = off
  plain = onnxruntime.InferenceSession(
    done[0].read_bytes(), options, providers=['CPUExecutionProvider']
  )
  (expected,) = plain.run(None, {format_.INPUT: images})
  found = exported.load(done[0]).logits(images)
  difference = np.abs(found - expected).max()
  assert difference < 0.05 * np.abs(expected).max()


def test_absurd_calibration_is_caught_and_leaves_nothing(
  directory, done, monkeypatch
):
  write = format_.write_int8

  def in_the_dark(network, path, images):
    return write(network, path, np.zeros_like(images))

  monkeypatch.setattr(format_, 'write_int8', in_the_dark)
  before = done[0].read_bytes()
  with pytest.raises(
    UserError, match=r'^not kept: student_int8.onnx differs from .*accuracy'
  ):
    export(directory)
  # What was there before is still there, and nothing else.
  names = {done[0].name, f'{done[0].name}.json'}
  assert {p.name for p in (directory / 'export').iterdir()} == names
  assert done[0].read_bytes() == before


def test_images_that_the_file_does_not_normalise(directory, tmp_path):
  network = deployed.student_of(directory, normalise=False)
  model = {k: v for k, v in network.model.items() if k != 'quantize'}
  images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
  path = tmp_path / 'x.onnx'
  network = dataclasses.replace(network, model=model)
  info = format_.write_int8(network, path, images)
  assert info['trained'] == 'in float'
  x = network.prepare(images)
  found = format_.load(path, {})(x)
  expected = np.asarray(jax.jit(network.function)(network.arrays, x))
  assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()
