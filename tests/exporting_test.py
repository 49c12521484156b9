"""A file is there if it was checked; what does not agree leaves nothing."""

import dataclasses
import functools
import hashlib
import io
import json
import re
import types
from pathlib import Path

import cli
import jax
import numpy as np
import pytest
import rich.console
import shipped
import tiny

from cbkd_jax import (
  experiment,
  exported,
  exporting,
  formats,
  student,
  workdir,
)
from cbkd_jax.errors import UserError
from cbkd_jax.exporting import Request
from cbkd_jax.formats import safetensors

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGES = tiny.images(5)[0]
DOCUMENT = Path(__file__).resolve().parent.parent / 'docs' / 'export.md'
# One image, one program: for what is about files.
SAFETENSORS = Request(('safetensors',), examples=1)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A workdir; test images, a black one last; its student's logits; labels."""
  directory = tmp_path_factory.mktemp('exporting') / 'run'
  shipped.write(directory)
  values = workdir.read_json(directory / 'config.json')
  test = experiment.load_data(values).test
  images = np.concatenate([test.images, np.zeros_like(test.images[:1])])
  logits = np.asarray(student.load_student(directory)(images))
  return directory, images, logits, test.labels


@pytest.fixture(scope='module')
def prepared():
  """Tasks by their requests: reading and running a network takes a second."""
  return functools.cache(exporting._prepare)


@pytest.fixture
def directory(run, prepared, monkeypatch):
  """The workdir, nothing exported yet."""

  def prepare(directory, request):
    alike = dataclasses.replace(request, formats=(), tolerance=None)
    task = prepared(directory, alike)
    return dataclasses.replace(task, request=request)

  monkeypatch.setattr(exporting, '_prepare', prepare)
  yield run[0]
  for path in (run[0] / 'export').glob('*'):
    path.unlink()


def export(directory, request):
  console = rich.console.Console(file=io.StringIO(), width=80)
  paths = exporting.export(directory, request, console)
  return paths, console.file.getvalue()


def perturb(tree):
  """The same but for one kernel, by a thousandth of its largest entry."""

  def one(path, leaf):
    if 'reduce' in str(path) and leaf.ndim == 4:
      leaf = leaf.copy()
      leaf.flat[0] += 1e-3 * np.abs(leaf).max()
    return leaf

  return jax.tree.map_with_path(one, tree)


@pytest.fixture
def broken(monkeypatch):
  """Safetensors whose arrays are not quite the network's."""
  write = safetensors.write
  monkeypatch.setattr(
    safetensors,
    'write',
    lambda network, path: write(
      dataclasses.replace(network, arrays=perturb(network.arrays)), path
    ),
  )


def left(directory):
  """The names of what is in `export`, hidden ones too."""
  folder = directory / 'export'
  return sorted(p.name for p in folder.iterdir()) if folder.exists() else None


def test_what_is_there_and_what_the_json_says(directory, run):
  _, images, (*logits, _), labels = run
  logits = np.stack(logits)
  paths, table = export(
    directory, Request(('stablehlo', 'safetensors'), examples=20)
  )
  names = ['student.stablehlo', 'student.safetensors']
  assert [path.name for path in paths] == names
  assert left(directory) == sorted([*names, *(f'{n}.json' for n in names)])
  chosen = np.arange(20) * 32 // 20  # from all over the split
  accuracy = float(np.mean(logits.argmax(-1)[chosen] == labels[chosen]))
  for path in paths:
    info = json.loads(path.with_name(f'{path.name}.json').read_text())
    content = path.read_bytes()
    assert info['format'] == path.suffix[1:]
    assert info['file'] == path.name
    assert info['sha256'] == hashlib.sha256(content).hexdigest()
    assert info['bytes'] == len(content)
    framing = info['input'].pop('framing')
    assert (framing['image_shape'], framing['centre']) == ([8, 8, 1], None)
    assert info['input'] == {
      'shape': ['batch', 8, 8, 1],
      'dtype': 'uint8',
      'layout': 'NHWC',
      'normalisation': 'included',
    }
    assert info['classes'] == list(shipped.NAMES)
    assert info['model']['of'] == 'student'
    assert info['model']['family'] == 'tiny_run:model'
    assert info['model']['batch_norms_folded'] == 3
    assert info['quantization'] is None
    assert info['accuracy'] == {
      'data': 'digits',
      'split': 'test[:32]',
      'examples': 20,
      'before': accuracy,
      'after': accuracy,
    }
    check = info['check']
    assert (check['images'], check['top1_agreement']) == (20, 1)
    assert check['max_logit_difference'] < 1e-5 * check['largest_logit']
    largest = np.abs(logits[chosen]).max()
    assert check['largest_logit'] == pytest.approx(largest, rel=1e-4)
    assert check['tolerance'] == 1e-4
    assert info['versions']['jax'] == jax.__version__
    assert path.name in table
  assert f'{accuracy:.4f}' in table
  found = exported.load(paths[0]).logits(images[:5])
  np.testing.assert_allclose(found, logits[:5], rtol=1e-4, atol=1e-5)


def test_pixels_that_the_file_does_not_normalise(directory):
  (path,), _ = export(
    directory,
    Request(('safetensors',), normalise=False, fold=False, of='teacher'),
  )
  assert path.name == 'teacher.safetensors'
  found = exported.load(path)
  assert found.info['input']['dtype'] == 'float32'
  assert found.info['input']['normalisation'] == {
    'scale': 1 / 255,
    'mean': [0.3],
    'std': [0.2],
  }
  assert found.info['model']['batch_norms_folded'] is None
  network, variables = shipped.teacher(directory)
  x = ((IMAGES / 255 - 0.3) / 0.2).astype(np.float32)
  expected = jax.jit(lambda x: exporting.blocks.logits(network, variables, x))
  np.testing.assert_allclose(
    found.logits(IMAGES), expected(x), rtol=1e-4, atol=1e-5
  )
  with pytest.raises(UserError, match=r'images are uint8 \(5, 9, 8, 1\), but'):
    found.logits(np.zeros((5, 9, 8, 1), np.uint8))


def test_the_document_shows_how_to_use_them(
  directory, run, monkeypatch, tmp_path
):
  """Each piece of code in it runs, and gives the student's logits."""
  export(directory, Request(('stablehlo', 'safetensors'), examples=1))
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'x').symlink_to(directory)
  monkeypatch.chdir(tmp_path)
  pieces = re.findall('```python\n(.*?)```', DOCUMENT.read_text(), re.DOTALL)
  assert len(pieces) == 3
  for piece in pieces:
    names = {}
    exec(piece, names)
    assert names['logits'].shape == (3, 10)
    black = np.stack([run[2][-1]] * 3)
    np.testing.assert_allclose(names['logits'], black, rtol=1e-4, atol=1e-5)


def test_a_file_that_differs_is_not_kept(directory, broken):
  with pytest.raises(
    UserError,
    match=r'not kept: student.safetensors differs from the student by .*'
    r'--tolerance=0.0001 \(max_logit_difference / largest_logit\) allows less',
  ):
    export(directory, SAFETENSORS)
  assert left(directory) is None
  # What agrees is kept.
  request = dataclasses.replace(
    SAFETENSORS, formats=('safetensors', 'stablehlo')
  )
  with pytest.raises(UserError, match='not kept: student'):
    export(directory, request)
  assert left(directory) == ['student.stablehlo', 'student.stablehlo.json']


def test_a_wider_tolerance(directory, broken):
  (path,), _ = export(
    directory, dataclasses.replace(SAFETENSORS, tolerance=0.1)
  )
  check = exported.load(path).info['check']
  assert 1e-4 < check['max_logit_difference'] / check['largest_logit'] < 0.1


def test_an_older_file_stays_until_the_new_one_is_checked(
  directory, monkeypatch
):
  export(directory, SAFETENSORS)
  before = {p: p.read_bytes() for p in (directory / 'export').iterdir()}
  assert len(before) == 2
  write = safetensors.write

  def killed(network, path):
    write(network, path)
    raise KeyboardInterrupt

  monkeypatch.setattr(safetensors, 'write', killed)
  with pytest.raises(KeyboardInterrupt):
    export(directory, SAFETENSORS)
  after = {p: p.read_bytes() for p in (directory / 'export').iterdir()}
  assert after == before


def test_what_a_killed_export_left_is_removed(directory):
  unchecked = directory / 'export' / '.unchecked'
  unchecked.mkdir(parents=True)
  (unchecked / 'student.onnx').write_bytes(b'half')
  export(directory, SAFETENSORS)
  assert left(directory) == ['student.safetensors', 'student.safetensors.json']


def test_without_its_json_a_file_is_not_finished(directory, monkeypatch):
  export(directory, SAFETENSORS)

  def killed(path, value):
    raise KeyboardInterrupt

  monkeypatch.setattr(workdir, 'write_json', killed)
  with pytest.raises(KeyboardInterrupt):
    export(directory, SAFETENSORS)
  assert left(directory) == ['student.safetensors']
  path = directory / 'export' / 'student.safetensors'
  with pytest.raises(UserError, match=r'student.safetensors.json, which says'):
    exported.load(path)


def test_files_that_are_not_their_jsons(directory):
  (path,), _ = export(directory, SAFETENSORS)
  path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match='its SHA-256 is not that in'):
    exported.load(path)
  beside = path.with_name(f'{path.name}.json')
  for text in '[]', '{"format": "x"}':
    beside.write_text(text)
    with pytest.raises(UserError, match='must name a format of stablehlo, '):
      exported.load(path)
  with pytest.raises(UserError, match='no such file'):
    exported.load(directory / 'nothing.onnx')


def rounding(steps):
  """A format that rounds arrays, up or down; notes what images it was given.

  Args:
    steps: from 0 to an array's largest entry; 0: it leaves nothing.
  """
  given = []

  def write_int8(network, path, images):
    given.append(images)

    def one(leaf):
      largest = np.abs(leaf).max() or 1
      return np.round(leaf / largest * steps) * largest / max(steps, 1)

    arrays = jax.tree.map(one, network.arrays)
    safetensors.write(dataclasses.replace(network, arrays=arrays), path)
    return {'weights': f'{steps} steps'}

  return types.SimpleNamespace(
    SUFFIX='.safetensors', load=safetensors.load, write_int8=write_int8
  ), given


def test_int8_is_judged_by_accuracy(directory, monkeypatch):
  module, given = rounding(127)
  monkeypatch.setattr(formats, 'module', lambda name: module)
  request = Request(('onnx',), quantize='int8', calibration=10, tolerance=0.5)
  (path,), _ = export(directory, request)
  assert path.name == 'student_int8.safetensors'
  info = exported.load(path).info
  assert info['quantization'] == {
    'scheme': 'int8',
    'calibration_images': 10,
    'weights': '127 steps',
  }
  assert info['check']['max_logit_difference'] > 1e-3
  assert info['check']['tolerance_of'] == 'lost accuracy'
  values = workdir.read_json(directory / 'config.json')
  train = experiment.load_data(values).train
  assert np.array_equal(given[0], train.images[np.arange(10) * 96 // 10])


def test_int8_that_costs_too_much(directory, run, monkeypatch):
  """Labels are what the student says: any change costs accuracy."""
  logits = run[2][:-1]
  module, _ = rounding(0)
  monkeypatch.setattr(formats, 'module', lambda name: module)
  prepare = exporting._prepare

  def labelled(directory, request):
    task = prepare(directory, request)
    reference = dataclasses.replace(task.reference, labels=logits.argmax(-1))
    return dataclasses.replace(task, reference=reference)

  monkeypatch.setattr(exporting, '_prepare', labelled)
  with pytest.raises(
    UserError, match=r'accuracy 0\.\d+ for 1.0000; --tolerance=0.02 \(lost'
  ):
    export(directory, Request(('onnx',), quantize='int8'))
  assert left(directory) is None


def test_the_command(directory):
  ended = cli.call(
    'cbkd_jax.export',
    f'--workdir={directory}',
    '--format=safetensors',
    '--nonormalise',
    '--nofold',
    '--examples=5',
  )
  assert ended.code == 0, ended.err
  assert 'student.safetensors' in ended.out
  info = exported.load(directory / 'export' / 'student.safetensors').info
  assert info['input']['dtype'] == 'float32'
  assert info['model']['batch_norms_folded'] is None
  assert info['check']['images'] == 5


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--workdir=/nowhere'], '--format is missing'),
    (['--format=onnx'], '--workdir is missing'),
    (['--workdir=/nowhere', '--format=onnx'], '/nowhere: holds no finished'),
    (['--workdir=/nowhere', '--format=onix'], "did you mean 'onnx'?; known: "),
    (
      ['--workdir=/nowhere', '--format=onnx', '--examples=0'],
      '--examples=0: must be at least 1',
    ),
    (
      ['--workdir=/nowhere', '--format=onnx', '--tolerance=-1'],
      '--tolerance=-1.0: must be 0 or more',
    ),
    (
      ['--workdir=/nowhere', '--format=onnx', '--quantize=int4'],
      'int4',
    ),
    (
      ['--workdir=/nowhere', '--format=onnx,stablehlo', '--quantize=int8'],
      'stablehlo has no --quantize=int8; those that have: onnx',
    ),
  ],
)
def test_wrong_usage_is_one_line(arguments, message):
  ended = cli.call('cbkd_jax.export', *arguments)
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err
