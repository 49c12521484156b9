"""Published weights become teachers, and go back as they came."""

import dataclasses
import hashlib
import importlib.util
import io
import json
import sys

import cli
import golden
import jax
import jax.numpy as jnp
import models_golden_test
import numpy as np
import pytest
import rich.console
import tiny
import tiny_run

from cbkd_jax import blocks, buckets, checkpoints, experiment, models
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import UserError
from cbkd_jax.weights import files, imported, matching, report, teachers

pytestmark = pytest.mark.usefixtures('quick_compilation')

COMMAND = 'cbkd_jax.import_weights'
MODEL = 'import_weights_test:model'
SHAPE = tiny_run.values()['data']['image_shape']
CLASSES = 10


def torch_name(part, path):
  return f'layers.{part}.{path.replace("/", ".")}'


def model(**arguments):
  """`tiny_run`'s model, which is quick to compile, with names of torch's."""
  return dataclasses.replace(
    tiny_run.model(**arguments), torch_names={'own': torch_name}
  )


def as_torch(leaf):
  """Torch's layout, written down once more."""
  return np.moveaxis(leaf, (-1, -2), (0, 1)) if leaf.ndim > 1 else leaf


@pytest.fixture(scope='module')
def variables():
  network = model(
    num_classes=CLASSES, image_shape=SHAPE, dtype=jnp.float32, axis_name=None
  ).network()
  return jax.device_get(tiny.draw(network, SHAPE))


@pytest.fixture(scope='module')
def state(variables):
  """The same as a state dict, built without the package's own conversion."""
  found = {}
  for part, (params, stats) in enumerate(zip(*variables)):
    if part == 3:
      dense = params['classifier']
      found['layers.3.classifier.weight'] = as_torch(dense['kernel'])
      found['layers.3.classifier.bias'] = dense['bias']
      continue
    unit, stats = params['unit_0'], stats['unit_0']
    at = f'layers.{part}.unit_0'
    found[f'{at}.conv.weight'] = as_torch(unit['conv']['kernel'])
    found[f'{at}.conv.bias'] = unit['conv']['bias']
    found[f'{at}.norm.weight'] = unit['norm']['scale']
    found[f'{at}.norm.bias'] = unit['norm']['bias']
    found[f'{at}.norm.running_mean'] = stats['norm']['mean']
    found[f'{at}.norm.running_var'] = stats['norm']['var']
    found[f'{at}.norm.num_batches_tracked'] = np.int64(240)
  return found


@pytest.fixture
def file(tmp_path, state):
  path = tmp_path / 'in' / 'tiny.safetensors'
  path.parent.mkdir()
  files.write(path, state)
  return path


def call(file, out, *others, model=MODEL, classes=CLASSES):
  given = [f'--model={model}', f'--num_classes={classes}', f'--out={out}']
  if model == MODEL:
    given.append(f'--image_shape={",".join(map(str, SHAPE))}')
  return cli.call(COMMAND, f'--from={file}', *given, *others)


def refused(ended, directory):
  """The one line, without 'error: '; nothing is left in the directory."""
  assert ended.code == 2
  assert [path.name for path in directory.iterdir()] == ['in']
  assert ended.err.count('\n') == 1
  return ended.err.removeprefix('error: ').strip()


def read(directory):
  network = model(
    num_classes=CLASSES, image_shape=SHAPE, dtype=jnp.float32, axis_name=None
  ).network()
  return checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(directory)),
    blocks.shapes(network, SHAPE),
  )


@pytest.mark.parametrize('file', models_golden_test.FILES)
def test_every_golden_network(file, tmp_path):
  _, state = models_golden_test.load(file)
  state['any.num_batches_tracked'] = np.int64(1)
  name = file.removesuffix('__recipe')
  files.write(tmp_path / 'a.safetensors', state)
  found = teachers.bring(
    tmp_path / 'a.safetensors', teachers.Request(name, 100)
  )
  assert found.description['image_shape'] == [32, 32, 3]
  assert found.description['names'] == 'repdistiller'
  # Those of which the golden tests say that they give the published logits.
  del state['any.num_batches_tracked']
  architecture = models.build(name, 100, (32, 32, 3))
  shapes = blocks.shapes(architecture.network(), (32, 32, 3))
  expected = models_golden_test.convert(state, architecture, shapes)
  assert tiny.same(found.variables, expected)
  if importlib.util.find_spec('torch'):
    import torch

    wrapped = {
      f'module.{k}': torch.from_numpy(np.array(v)) for k, v in state.items()
    }
    torch.save({'model': wrapped, 'epoch': 240}, tmp_path / 'a.pth')
    again = teachers.bring(tmp_path / 'a.pth', teachers.Request(name, 100))
    assert tiny.same(again.variables, expected)


def test_a_published_network_by_the_command(tmp_path):
  arrays, state = models_golden_test.load('resnet8x4')
  file, out = tmp_path / 'a.safetensors', tmp_path / 'new' / 'out'
  files.write(file, state)
  ended = call(file, out, model='resnet8x4', classes=100)
  assert ended.code == 0, ended.err
  assert "a.safetensors, repdistiller's names" in ended.out
  assert ended.out.endswith(
    f'--config.teacher.model=resnet8x4 --config.teacher.checkpoint={out}\n'
  )
  described = json.loads((out / 'imported.json').read_text())
  assert described == {
    'model': 'resnet8x4',
    'num_classes': 100,
    'image_shape': [32, 32, 3],
    'file': 'a.safetensors',
    'sha256': hashlib.sha256(file.read_bytes()).hexdigest(),
    'names': 'repdistiller',
    'dtypes': {},
    'drawn': [],
    'seed': 0,
  }
  network = models.build('resnet8x4', 100, (32, 32, 3)).network()
  variables = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(out)),
    blocks.shapes(network, (32, 32, 3)),
  )
  view = jax.jit(lambda v, x: blocks.view(blocks.run(network, v, x)[0]))(
    variables, golden.to_nhwc(arrays['x'])
  )
  models_golden_test.assert_close(view.logits, arrays['logits'])
  for i, features in enumerate(view.features):
    models_golden_test.assert_close(features, arrays[f'feat_{i + 1}'])
  # And back: the published state dict, bit for bit.
  back = tmp_path / 'back.safetensors'
  ended = cli.call(COMMAND, f'--from={out}', f'--to={back}')
  assert (ended.code, ended.err) == (0, '')
  assert ended.out == f'{back}: 52 tensors\n'
  (found,) = files.read(back).values()
  assert sorted(found) == sorted(state)
  assert tiny.same(found, {name: state[name] for name in found})


def test_types_come_back(tmp_path, file, state):
  kinds = {'conv.weight': jnp.bfloat16, 'bias': np.float16, 'var': np.float64}
  other = {
    name: value.astype(
      next((t for end, t in kinds.items() if name.endswith(end)), value.dtype)
    )
    for name, value in state.items()
  }
  files.write(file, other)
  out, back = tmp_path / 'out', tmp_path / 'back.safetensors'
  assert call(file, out).code == 0
  first = read(out)
  assert {leaf.dtype for leaf in jax.tree.leaves(first)} == {
    jnp.dtype('float32')
  }
  np.testing.assert_array_equal(
    first.params[0]['unit_0']['conv']['bias'],
    other['layers.0.unit_0.conv.bias'].astype(np.float32),
  )
  assert cli.call(COMMAND, f'--from={out}', f'--to={back}').code == 0
  (found,) = files.read(back).values()
  kept = {k: v for k, v in other.items() if 'num_batches' not in k}
  assert sorted(found) == sorted(kept)
  assert tiny.same(found, {name: kept[name] for name in found})
  assert call(back, tmp_path / 'again').code == 0
  assert tiny.same(read(tmp_path / 'again'), first)


def test_a_classifier_of_ones_own(tmp_path, file, variables, monkeypatch):
  ended = call(file, tmp_path / 'out', '--seed=3', classes=7)
  assert refused(ended, tmp_path) == (
    f'{file}: does not match {MODEL} with 7 classes: 2 of another shape '
    '(layers.3.classifier.bias: (10,) there, (7,) here); it matches '
    '--num_classes=10; --allow_missing=layers.3.classifier.bias,'
    'layers.3.classifier.weight draws them at random'
  )
  allowed = '--allow_missing=head/classifier'
  ended = call(file, tmp_path / 'out', allowed, '--seed=3', classes=7)
  assert ended.code == 0
  assert ended.out.count('drawn, seed 3') == 2
  network = model(
    num_classes=7, image_shape=SHAPE, dtype=jnp.float32, axis_name=None
  ).network()
  found = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(tmp_path / 'out')),
    blocks.shapes(network, SHAPE),
  )
  drawn = blocks.init(network, jax.random.key(3), SHAPE, (3,)).params[3]
  assert tiny.same(found.params[3], jax.device_get(drawn))
  assert tiny.same(found.params[:3], variables.params[:3])
  assert tiny.same(found.batch_stats, variables.batch_stats)
  described = imported.description(tmp_path / 'out')
  assert described['seed'] == 3
  assert described['drawn'] == [
    'head/classifier/bias',
    'head/classifier/kernel',
  ]


def test_a_missing_array_of_a_part_whose_others_are_there(
  tmp_path, file, state, variables
):
  name = 'layers.1.unit_0.norm.running_var'
  files.write(file, {k: v for k, v in state.items() if k != name})
  assert call(file, tmp_path / 'out', f'--allow_missing={name}').code == 0
  found = read(tmp_path / 'out')
  norm = variables.batch_stats[1]['unit_0']['norm']
  fresh = {'unit_0': {'norm': {**norm, 'var': np.ones(6, np.float32)}}}
  stats = variables.batch_stats
  assert tiny.same(
    found, variables._replace(batch_stats=(stats[0], fresh, *stats[2:]))
  )


def test_the_table(state):
  state = {**state, 'extra.weight': np.zeros((2, 3), np.float32)}
  del state['layers.0.unit_0.norm.running_var']
  architecture = model(
    num_classes=7, image_shape=SHAPE, dtype=jnp.float32, axis_name=None
  )
  shapes = blocks.shapes(architecture.network(), SHAPE)
  console = rich.console.Console(file=io.StringIO(), width=80)
  found = matching.match(state, architecture, shapes, 'own')
  report.show(found, 'a.pth', {'extra.weight': 'left out'}, console)
  rows = [' '.join(r.split()) for r in console.file.getvalue().splitlines()]
  for row in (
    'block_0 5 of 6 52',  # 3x3x1x4 + 4 + 3 * 4
    'block_1 6 of 6 246',
    'head 0 of 2 0',
    'missing block_0/unit_0/norm/var 4',
    'layers.0.unit_0.norm.running_var',
    'other shape head/classifier/kernel 7x8 10x8',
    'layers.3.classifier.weight',
    'unexpected extra.weight 2x3 left out',
  ):
    assert row in rows


# What is given besides a good file, and what the line must say.
FLAGS = {
  '--model=resnet32x5': "model 'resnet32x5' is not known; did you mean 'resnet",
  '--num_classes=0': '--num_classes=0: must be at least 1',
  '--image_shape=8,8': '--image_shape=8,8: must be height,width,channels',
  '--image_shape=4,4,1': "model 'resnet8': image shape (4, 4, 1) has a side of",
  '--names=timn': '--names=timn: must be one of own',
  '--entry=model': '--entry=model: {file} has ',
  '--allow_missing=fc': '--allow_missing=fc: there is no such name',
  '--to=x.safetensors': 'give one of --out=DIR and --to=FILE.safetensors',
  '--out=in': '--out=in: exists and is not an empty directory',
}


@pytest.mark.parametrize('flag', FLAGS)
def test_wrong_flags(tmp_path, file, flag, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = 'resnet8' if '4,4,1' in flag else MODEL
  ended = call(file, 'out', flag, model=name)
  expected = FLAGS[flag].replace('{file}', str(file))
  assert expected in refused(ended, tmp_path)


@pytest.mark.parametrize('flag', ['from', 'model', 'num_classes'])
def test_absent_flags(tmp_path, file, flag):
  given = {
    'from': file,
    'model': MODEL,
    'num_classes': 3,
    'out': tmp_path / 'o',
  }
  del given[flag]
  ended = cli.call(COMMAND, *(f'--{k}={v}' for k, v in given.items()))
  assert refused(ended, tmp_path) == f'--{flag} is missing; see --help'


def changed(state, name, value):
  return {**state, name: value}


FIRST = 'layers.0.unit_0.conv.bias'
CONTENTS = {
  'integers': (
    lambda state: changed(state, FIRST, np.arange(4)),
    f'{FIRST} is of type int64; must be floating-point numbers',
  ),
  'NaN': (
    lambda state: changed(state, FIRST, np.float32([0, np.nan, 1, 2])),
    f'{FIRST} holds infinite numbers or NaN',
  ),
  'too large for float32': (
    lambda state: changed(state, FIRST, np.float64([0, 1e300, 1, 2])),
    f'{FIRST} holds infinite numbers or NaN',
  ),
  'more': (
    lambda state: changed(state, 'extra', np.ones(3, np.float32)),
    f'does not match {MODEL} with 10 classes: 1 unexpected (extra)',
  ),
  'less': (
    lambda state: {k: v for k, v in state.items() if k != FIRST},
    f'does not match {MODEL} with 10 classes: 1 missing ({FIRST})',
  ),
}


@pytest.mark.parametrize('kind', CONTENTS)
def test_weights_that_are_refused(tmp_path, file, state, kind):
  change, expected = CONTENTS[kind]
  files.write(file, change(state))
  ended = call(file, tmp_path / 'out')
  assert refused(ended, tmp_path) == f'{file}: {expected}'
  table = 'what does not match' in ended.out
  assert table == (kind in ('more', 'less'))


def test_files_that_are_refused(tmp_path, file, monkeypatch):
  whole = file.read_bytes()
  absent = file.with_name('absent.pth')
  message = refused(call(absent, tmp_path / 'out'), tmp_path)
  assert message == f'{absent}: No such file or directory'
  file.write_bytes(whole[:-1])
  assert 'is it damaged?' in refused(call(file, tmp_path / 'out'), tmp_path)
  monkeypatch.setitem(sys.modules, 'torch', None)
  file.write_bytes(b'PK\x03\x04' + bytes(50))
  assert "pip install torch (the extra 'torch')" in refused(
    call(file, tmp_path / 'out'), tmp_path
  )


def test_a_failed_write_leaves_nothing(tmp_path, file, monkeypatch):
  def fail(path, value):
    raise OSError(5, 'Input/output error')

  monkeypatch.setattr(imported.workdir, 'write_json', fail)
  ended = call(file, tmp_path / 'out')
  assert refused(ended, tmp_path) == (
    f'--out={tmp_path / "out"}: Input/output error'
  )


def test_a_teacher_in_a_bucket(tmp_path, file, variables, monkeypatch):
  pytest.importorskip('gcsfs')
  import fake_gcs

  with fake_gcs.serve('bucket') as server:
    for name, value in server.environment().items():
      monkeypatch.setenv(name, value)
    out = 'gs://bucket/teachers/tiny'
    ended = call(file, out)
    assert ended.code == 0, ended.err
    assert tiny.same(read(out), variables)
    assert imported.description(buckets.path(out, '--out'))['model'] == MODEL
    message = refused(call(file, out), tmp_path)
    assert message == f'--out={out}: exists and is not an empty directory'


def test_the_way_back_is_refused(tmp_path, file):
  target = tmp_path / 'in' / 'back.safetensors'
  for given, expected in (
    ([f'--from={tmp_path}', f'--to={target}'], 'neither the directory of an'),
    ([f'--from={tmp_path}', f'--to={tmp_path}/a.pth'], 'must end in .safete'),
    ([f'--from={tmp_path}', f'--to={file}'], 'exists'),
    (
      [f'--from={tmp_path}', f'--to={target}', f'--model={MODEL}'],
      '--model goes with --out',
    ),
  ):
    assert expected in refused(cli.call(COMMAND, *given), tmp_path)


def test_another_network_in_a_later_run(tmp_path, file):
  assert call(file, tmp_path / 'out').code == 0
  checkpoint = str(tmp_path / 'out')
  from cbkd_jax import adoption

  def check(**changes):
    values = {'teacher__model': MODEL, 'teacher__checkpoint': checkpoint}
    devices = tuple(jax.devices()[:1])
    values = tiny_run.values(**(values | changes))
    return adoption.check_teacher(experiment.build(values, devices))

  assert check() == tmp_path / 'out' / 'state'
  for field, value, flag, theirs in (
    ('teacher.model', 'tiny_run:model', 'model', MODEL),
    ('data.classes', 7, 'num_classes', 10),
    ('data.image_shape', (16, 16, 1), 'image_shape', '8,8,1'),
  ):
    shown = list(value) if isinstance(value, tuple) else value
    with pytest.raises(UserError) as error:
      check(**{field.replace('.', '__'): value})
    assert str(error.value) == (
      f'teacher.checkpoint = {checkpoint!r}: tiny.safetensors was imported '
      f'with --{flag}={theirs}, but here {field} = {shown!r}'
    )


def test_a_run_with_an_imported_teacher(tmp_path, file, state, variables):
  assert call(file, tmp_path / 'out').code == 0
  work = tmp_path / 'run'
  summary = tiny_run.run(
    work,
    {
      'teacher__model': MODEL,
      'teacher__checkpoint': str(tmp_path / 'out'),
      'order': 'scratch',
      'thaw__steps': 1,
      'data__mean': (0.4,),
      'data__std': (0.3,),
    },
  )
  assert tiny.same(read(work), variables)
  values = tiny_run.values(data__mean=(0.4,), data__std=(0.3,))
  test = experiment.load_data(values).test
  network = model(
    num_classes=CLASSES, image_shape=SHAPE, dtype=jnp.float32, axis_name=None
  ).network()
  images = normalise(test.images, experiment.plan_augmentation(values))
  logits = jax.jit(lambda v, x: blocks.logits(network, v, x))(variables, images)
  accuracy = float(np.mean(np.argmax(logits, -1) == test.labels))
  assert summary['teacher']['accuracy'] == pytest.approx(accuracy)
  # The run's teacher is the file, too.
  back = tmp_path / 'back.safetensors'
  assert cli.call(COMMAND, f'--from={work}', f'--to={back}').code == 0
  (found,) = files.read(back).values()
  assert tiny.same(found, {name: state[name] for name in found})
  assert len(found) == 20
