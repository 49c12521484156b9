"""Networks as ONNX files."""

import importlib
import json
import sys
from collections import Counter

import jax
import numpy as np
import pytest
import random_network

from cbkd_jax.errors import UserError

onnx = pytest.importorskip('onnx', reason="needs onnx, the extra 'onnx'")
pytest.importorskip('onnxruntime', reason="needs it, the extra 'onnx'")
format_ = pytest.importorskip('cbkd_jax.formats.onnx')

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def network():
  return random_network.network('resnet8', (8, 8, 1), normalise=True)


@pytest.fixture(scope='module')
def path(network, tmp_path_factory):
  path = tmp_path_factory.mktemp('onnx') / 'x.onnx'
  format_.write(network, path)
  return path


def operations(model):
  return Counter(node.op_type for node in model.graph.node)


def test_the_file_gives_what_jax_gives_for_any_number_of_images(network, path):
  run = format_.load(path, {})
  for count in (1, 3):
    images = random_network.images(network, count)
    expected = np.asarray(jax.jit(network.function)(network.arrays, images))
    assert expected.std() > 0.1
    found = run(images)
    assert found.dtype == np.float32
    assert found.shape == (count, 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_graph_has_nothing_but_the_layers(path):
  # 9 convolutions, ReLUs after 7 of them, 3 sums; pixels to 0..1, mean, std.
  assert operations(onnx.load(path)) == {
    'Cast': 1,
    'Div': 2,
    'Sub': 1,
    'Transpose': 1,
    'Conv': 9,
    'Relu': 7,
    'Add': 3,
    'ReduceMean': 1,
    'Gemm': 1,
  }


def test_the_file_says_what_it_is(network, path):
  model = onnx.load(path)
  onnx.checker.check_model(model, full_check=True)
  said = {entry.key: entry.value for entry in model.metadata_props}
  assert json.loads(said['class_names']) == [f'class {i}' for i in range(5)]
  assert json.loads(said['model'])['family'] == 'resnet8'
  assert said['normalisation'] == 'included'
  assert said['layout'] == 'NHWC'
  assert model.producer_name == 'cbkd_jax'
  (opset,) = model.opset_import
  assert opset.version == format_.OPSET == 18
  (images,), (logits,) = model.graph.input, model.graph.output
  assert images.name == 'images'
  assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
  sizes = [
    [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    for value in (images, logits)
  ]
  assert sizes == [['batch', 8, 8, 1], ['batch', 5]]
  assert logits.name == 'logits'
  kernels = {c.name: c for c in model.graph.initializer}
  kernel = onnx.numpy_helper.to_array(kernels['block_0/stem/conv/kernel'])
  own = network.arrays['params']['block_0']['stem']['conv']['kernel']
  np.testing.assert_array_equal(kernel, own.transpose(3, 2, 0, 1))


def test_images_that_are_normalised_outside():
  # Traced, not run: that is what JAX's own arithmetic is checked for above.
  model = format_.convert(
    random_network.network('resnet8', (8, 8, 1), normalise=False)
  )
  assert operations(model)['Cast'] == 0
  (images,) = model.graph.input
  assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
  said = {entry.key: entry.value for entry in model.metadata_props}
  assert json.loads(said['normalisation']) == {
    'scale': 1 / 255,
    'mean': [0.5],
    'std': [0.2],
  }


@pytest.mark.parametrize(
  ('family', 'expected'),
  [
    # A stem, 16 units of 3 convolutions, in each a shuffle: two reshapes around
    # a transposition; in 13 a sum. One transposition brings the images in.
    (
      'ShuffleV1',
      {'Conv': 49, 'Reshape': 30, 'Transpose': 16, 'Add': 13, 'Concat': 3},
    ),
    ('mobilenet_v2', {'Conv': 52, 'Clip': 35, 'Transpose': 1, 'Add': 10}),
    # Norms that follow a sum stay, as a factor and a term.
    ('wrn_16_1', {'Conv': 15, 'Transpose': 1, 'Mul': 7, 'Add': 7 + 6}),
  ],
)
def test_other_families_graphs_are_clean(family, expected):
  model = format_.convert(
    random_network.network(family, (32, 32, 3), normalise=False)
  )
  onnx.checker.check_model(model, full_check=True)
  found = operations(model)
  assert {op: found[op] for op in expected} == expected
  assert found['BatchNormalization'] == 0


def test_a_damaged_file(path, tmp_path):
  damaged = tmp_path / 'damaged.onnx'
  damaged.write_bytes(path.read_bytes()[:999])
  with pytest.raises(
    UserError, match=r'damaged\.onnx: onnxruntime cannot read'
  ):
    format_.load(damaged, {})


@pytest.mark.parametrize('library', ['onnx', 'onnxruntime'])
def test_without_its_library_the_message_names_the_extra(library, monkeypatch):
  monkeypatch.delitem(sys.modules, 'cbkd_jax.formats.onnx')
  monkeypatch.setitem(sys.modules, library, None)
  with pytest.raises(UserError, match=rf"needs {library}; .*extra 'onnx'"):
    importlib.import_module('cbkd_jax.formats.onnx')
