"""Bad input: exit code 2, one line on stderr that helps, nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import cli
import pytest
import tiny_run

from cbkd_jax import workdir

HERE = Path(__file__).parent
CONFIG = f'--config={HERE}/tiny_run.py'

STREAM = '--config.data.pipeline=stream'
MOMENTS = '--config.data.mean=(.5,) --config.data.std=(.2,)'

# What is given besides a good config, and what the line must say.
CASES = {
  # Flags and fields.
  '--wrokdir=x': "flag 'wrokdir'. Did you mean: workdir ?",
  'run': "unexpected argument 'run'",
  '--config.bach_size=3': (
    'no such field: bach_size Did you mean "batch_size" instead'
  ),
  '--config.thaw.epoch=3': 'no such field: epoch Did you mean "epochs" instead',
  '--config.stage_overrides.stage_9.epochs=2': 'no such field: stage_9',
  '--config.batch_size=many': "invalid literal for int() with base 10: 'many'",
  '--config.batch_size=1.5': "invalid literal for int() with base 10: '1.5'",
  '--config.thaw=3': '`3` is not a dict',
  '--config.thaw.epochs=long': "could not convert string to float: 'long'",
  '--config.compression.keep=half': (
    "compression.keep = ('half',): must be a tuple of one number per block"
  ),
  '--config.sync_batch_norm=perhaps': "sync_batch_norm=perhaps: ('Non-boolean",
  '--dry_run=perhaps': "--dry_run=perhaps: ('Non-boolean",
  # Names, with the nearest known one.
  '--config.objective=kdd': "method 'kdd' is not known; did you mean 'kd'?",
  '--config.thaw.objective=kdd': "thaw.objective = 'kdd': method 'kdd' is not",
  '--config.stage_overrides.stage_1.objective=kdd': (
    "stage_overrides.stage_1.objective = 'kdd': method 'kdd' is not known"
  ),
  '--config.objective=kd(temprature=3)': (
    "option 'temprature' is not known; did you mean 'temperature'?"
  ),
  '--config.teacher.model=resnet15': (
    "teacher.model: model 'resnet15' is not known; did you mean 'resnet"
  ),
  '--config.teacher.model=nowhere:model': "no module 'nowhere'",
  '--config.teacher.model=tiny_run:modell': "has no function 'modell'",
  '--config.data.name=digit': "did you mean 'digits'?",
  '--config.order=clockwize': (
    "order = 'clockwize': must be one of counterclockwise, clockwise, joint, "
    "joint_inherited, scratch; did you mean 'clockwise'?"
  ),
  '--config.compression.init=slices': "did you mean 'slice'?",
  '--config.thaw.optimizer=adam': "did you mean 'adamw'?",
  '--config.thaw.schedule=cos': "did you mean 'cosine'?",
  '--config.spmd=pjit': "spmd = 'pjit': must be one of pmap, shard_map, jit",
  # Tests have four devices.
  '--config.mesh.data=3': (
    'mesh.data = 3, mesh.model = 1: their product must be the number of '
    'devices, 4'
  ),
  '--config.mesh.model=2': "mesh.model = 2: must be 1 with spmd = 'pmap'",
  '--config.spmd=jit --config.mesh.model=3': 'mesh.data = None, mesh.model = 3',
  '--config.spmd=jit --config.mesh.model=2 --config.mesh.data=4': (
    'mesh.data = 4, mesh.model = 2: their product must be the number of'
  ),
  '--config.spmd=jit --config.sync_batch_norm=False': (
    "sync_batch_norm = False: must be True with spmd = 'jit'"
  ),
  '--config.mesh.model=0': 'mesh.model = 0: must be an integer of at least 1',
  # Objectives that can't be read.
  '--config.objective=0.1*ce+': "objective = '0.1*ce+': not an objective",
  '--config.objective=': "objective = '': not an objective",
  '--config.objective=ce - kd': "'ce - kd' is not a term",
  '--config.objective=2': "'2' is not a term",
  # Numbers out of range.
  '--config.objective=kd(temperature=0)': 'kd.temperature = 0.0: must be above',
  '--config.objective=kd(temperature=-4)': 'kd.temperature = -4.0: must be abo',
  '--config.objective=-1*ce': 'weight -1.0 is out of range: 0 or more',
  '--config.batch_size=0': 'batch_size = 0: must be an integer of at least 1',
  '--config.batch_size=-4': 'batch_size = -4: must be an integer of at least 1',
  '--config.eval_batch_size=0': 'eval_batch_size = 0: must be an integer of',
  '--config.thaw.epochs=0': 'thaw.epochs = 0.0: must be a number above 0',
  '--config.teacher.epochs=-1': 'teacher.epochs = -1.0: must be a number above',
  '--config.stage.epochs=nan': 'stage.epochs = nan: must be a number above 0',
  '--config.stage.steps=0': 'stage.steps = 0: must be an integer of at least 1',
  '--config.thaw.steps=-3': 'thaw.steps = -3: must be an integer of at least 1',
  '--config.steps_per_call=0': 'steps_per_call = 0: must be an integer of at',
  '--config.checkpoint_every_steps=0': 'checkpoint_every_steps = 0: must be an',
  '--config.inherit=0': 'inherit = 0: must be an integer of at least 1',
  '--config.inherit=-1': 'inherit = -1: must be an integer of at least 1',
  '--config.inherit=3': 'inherit = 3: must be at least 1 and below the number '
  'of blocks, 3',
  '--config.seed=-1': 'seed = -1: must be an integer from 0 to 2147483647',
  '--config.stage_overrides.stage_1.epochs=0.': (
    'stage_overrides.stage_1.epochs = 0.0: must be a number above 0'
  ),
  '--config.stage_overrides.stage_5.epochs=2.': (
    'stage_overrides.stage_5: there is no such stage; this plan has stage_1 '
    'to stage_2'
  ),
  # Compression.
  '--config.compression.keep=(1,.5)': (
    'compression.keep = (1, 0.5): must have 3 entries, one per block of the '
    'teacher, but has 2'
  ),
  '--config.compression.keep=(1,.5,1.5)': 'must be above 0 and at most 1',
  '--config.compression.keep=(1,.5,0.)': 'must be above 0 and at most 1',
  '--config.compression.keep=(1,.25,.5)': (
    'must not grow with depth; compression.allow_any_order=True permits it'
  ),
  '--config.compression.keep=(.5,.25,.2)': 'the first 1 must be 1',
  '--config.compression.depth=(1,2)': 'must have 3 entries, each from 1 to',
  '--config.compression.depth=(1,1,2)': 'units of its block, (1, 1, 1)',
  # Devices and data.
  '--config.batch_size=18': (
    'batch_size = 18: must be a multiple of the number of devices, 4'
  ),
  '--config.micro_batches=0': 'micro_batches = 0: must be an integer of at le',
  '--config.micro_batches=3': (
    'micro_batches = 3: must divide the batch of a device, 4'
  ),
  '--config.micro_batches=2 --config.objective=rkd': (
    'stage_1: batch_size = 16, micro_batches = 2: rkd sees 2 example(s) at '
    'once, and must see at least 3'
  ),
  '--config.data.classes=11': 'data.classes = 11, but digits has 10',
  '--config.data.image_shape=(8,8,3)': (
    'data.image_shape = (8, 8, 3), but digits has (8, 8, 1)'
  ),
  '--config.data.image_shape=(16,16,1)': (
    'data.image_shape = (16, 16, 1), but digits has (8, 8, 1)'
  ),
  '--config.data.image_shape=(8,8)': 'must be (height, width, channels)',
  '--config.data.mean=(1,2)': 'must have one entry per channel, 1, or be ()',
  '--config.data.train_size=97': 'data.train_size = 97, but digits has 96',
  '--config.data.train_split=trian': "data.train_split = 'trian', but digits",
  '--config.data.validation_size=-1': 'data.validation_size = -1: must be an',
  '--config.data.name=cifar10': "data.name = 'cifar10' is not prepared: no ",
  '--config.data.name=tiny_imagenet': 'tiny_imagenet',
  # Augmentation, and what can't look at mixed images.
  '--config.data.cutout=-1': 'data.cutout = -1: must be an integer of at least',
  '--config.data.cutout=9': 'data.cutout = 9: must be at most 8, the smaller',
  '--config.data.mixup=-1': 'data.mixup = -1.0: must be a number of at least 0',
  '--config.data.cutmix=nan': 'data.cutmix = nan: must be a number of at least',
  '--config.data.alternating_flip=True --config.data.flip=False': (
    'data.alternating_flip = True, but data.flip = False; it must be True'
  ),
  '--config.data.mixup=.2 --config.thaw.objective=dkd': (
    'thaw: data.mixup = 0.2: must be 0 for dkd, which needs the labels of '
    'images that are not mixed'
  ),
  # Streams.
  '--config.data.pipeline=streamed': (
    "data.pipeline = 'streamed': must be one of resident, stream; did you mean "
    "'stream'?"
  ),
  '--config.data.crop=random': (
    "data.crop = 'random': must be one of none, random_resized; did you mean"
  ),
  '--config.data.workers=-1': 'data.workers = -1: must be an integer of at lea',
  '--config.data.crop_area=0': 'data.crop_area = 0.0: must be a number above 0',
  '--config.data.crop_area=1.5': 'data.crop_area = 1.5: must be a number above',
  '--config.data.crop=random_resized': (
    "data.crop = 'random_resized': must be 'none' with data.pipeline = "
    "'resident'"
  ),
  f'{STREAM}': "data.mean = (): must be given with data.pipeline = 'stream'",
  f'{STREAM} --config.data.mean=(.5,)': 'data.std = (): must be given with',
  f'{STREAM} {MOMENTS} --config.data.crop=random_resized '
  '--config.data.resize=8': (
    "data.resize = 8: must be 0 with data.crop = 'random_resized'"
  ),
  f'{STREAM} {MOMENTS} --config.data.crop=random_resized --config.data.pad=1': (
    "data.pad = 1: must be 0 with data.crop = 'random_resized'"
  ),
  f'{STREAM} {MOMENTS} --config.cache.prefix': (
    "cache.prefix = True: must be False with data.pipeline = 'stream'"
  ),
  f'{STREAM} {MOMENTS} --config.cache.thaw': (
    "cache.thaw = True: must be False with data.pipeline = 'stream'"
  ),
  f'{STREAM} {MOMENTS} --config.thaw.objective=crd': (
    "thaw: data.pipeline = 'stream': must be resident for crd, which needs the "
    'labels of all training examples'
  ),
  f'{STREAM} {MOMENTS} --config.data.crop=random_resized '
  '--config.objective=mlkd': (
    "stage_1: data.crop = 'random_resized': must be 'none' for mlkd, which "
    'looks at two views of an image'
  ),
  f'{STREAM} {MOMENTS} --config.data.image_shape=(16,16,1)': (
    'data.image_shape = (16, 16, 1), but digits has (8, 8, 1)'
  ),
  # Caches.
  '--config.cache.views=-1': 'cache.views = -1: must be an integer of at least',
  '--config.cache.dtype=int4': (
    "cache.dtype = 'int4': must be one of exact, bfloat16, uint8"
  ),
  '--config.cache.limit_mib=0': 'cache.limit_mib = 0.0: must be a number above',
  '--config.cache.views=99999999': (
    'cache.views = 99999999: 96 examples allow at most 22369621'
  ),
  '--config.cache.prefix --config.data.mixup=.2': (
    'data.mixup = 0.2: must be 0 where stage_1 keeps what it'
  ),
  '--config.cache.thaw --config.cache.views=1 --config.objective=mlkd': (
    'looks at two views of an image in thaw; must be at least 2'
  ),
  '--config.data.mixup=.2 --config.data.cutmix=1 --config.objective=mlkd': (
    'stage_1: data.mixup = 0.2 and data.cutmix = 1.0: must be 0 for mlkd,'
  ),
  '--config.data.cutmix=1 --config.objective=crd': 'must be 0 for crd, which',
  # The teacher's own objective.
  '--config.teacher.objective=kd': (
    "teacher.objective = 'kd': must use no teacher, but kd does; allowed: sums "
    "of such as 'ce' and 'ce(label_smoothing=0.1)'"
  ),
  '--config.teacher.objective=cee': "teacher.objective = 'cee': method 'cee' i",
  '--config.teacher.objective=ce(label_smoothing=1)': (
    'ce.label_smoothing = 1.0: must be from 0 to below 1'
  ),
  '--measure_memory': '--measure_memory goes with --dry_run',
  # Other runs.
  '--config.teacher.checkpoint=/nowhere': (
    "teacher.checkpoint = '/nowhere': neither a workdir with a teacher nor an "
    'orbax checkpoint'
  ),
  '--from_stage=thaw': '--from_workdir and --from_stage go together',
  '--from_workdir=/nowhere': '--from_workdir and --from_stage go together',
  '--from_workdir=/nowhere --from_stage=thaw': (
    '--from_workdir=/nowhere: its phase teacher is not finished'
  ),
  '--from_workdir=/nowhere --from_stage=stage_9': (
    '--from_stage=stage_9: must be one of stage_1, stage_2, thaw or a number '
    'from 1 to 3'
  ),
}


@pytest.fixture(autouse=True)
def _no_data(tmp_path_factory, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path_factory.mktemp('no_data')))


def _refused(*arguments):
  """The one line."""
  ended = cli.call('cbkd_jax.train', *arguments)
  assert (ended.code, ended.out) == (2, '')
  assert ended.err.startswith('error: ')
  assert ended.err.endswith('\n')
  assert ended.err.count('\n') == 1
  return ended.err.removeprefix('error: ').rstrip()


@pytest.mark.parametrize(('arguments', 'line'), CASES.items(), ids=list(CASES))
def test_a_flag_or_field(tmp_path, arguments, line):
  # Spaces part flags, but not the terms of an objective.
  arguments = arguments.replace(' --', '\n--').split('\n')
  directory = tmp_path / 'runs' / 'run'
  said = _refused(CONFIG, f'--workdir={directory}', *arguments)
  assert line in said
  assert list(tmp_path.iterdir()) == []


def test_a_plan_refuses_the_same(tmp_path):
  for arguments in CASES:
    # A plan needs neither data nor other runs.
    if '.data.' in arguments or 'from_' in arguments or '/now' in arguments:
      continue
    if arguments.startswith(('--dry_run', '--measure_memory')):
      continue
    parts = arguments.replace(' --', '\n--').split('\n')
    assert CASES[arguments] in _refused(CONFIG, '--dry_run', *parts)


def test_flags_that_are_missing(tmp_path):
  assert _refused(CONFIG) == '--workdir is missing; see --help'
  said = _refused(f'--workdir={tmp_path / "run"}')
  assert said == '--config is missing; see --help'


@pytest.mark.parametrize(
  ('text', 'line'),
  [
    (None, 'No such file or directory'),
    ('def get_config(:\n', 'SyntaxError: invalid syntax'),
    ('def get_config():\n  raise RuntimeError("a\\nb")\n', 'RuntimeError: a b'),
    ('def get_config():\n  raise ValueError("bad seed")\n', 'bad seed'),
    ('def get_config():\n  return 1 / 0\n', 'ZeroDivisionError: division by'),
    ('import nowhere\n', "ModuleNotFoundError: No module named 'nowhere'"),
    ('def get_configs():\n  pass\n', 'has no attribute get_config'),
    ('def get_config():\n  return 3\n', 'must return a ConfigDict, but retur'),
    (
      'def get_config():\n  pass\n',
      'must return a ConfigDict, but returned No',
    ),
  ],
)
def test_a_config_file(tmp_path, text, line):
  path = tmp_path / 'config.py'
  if text is not None:
    path.write_text(text)
  directory = tmp_path / 'run'
  overridden = [('--config.seed=1',)] if 'must return' not in line else []
  for more in (), *overridden:
    said = _refused(f'--config={path}', f'--workdir={directory}', *more)
    assert said.startswith(f'--config={path}: ')
    assert line in said
    assert not directory.exists()


def test_a_config_file_with_other_fields(tmp_path):
  path = tmp_path / 'config.py'
  start = 'from configs import default\ndef get_config():\n'
  start += '  c = default.get_config()\n'
  for rest, line in (
    ('c.bach_size = 3', "bach_size: no such field; did you mean 'batch_size'?"),
    ('c.thaw.steps_ = 3', "thaw.steps_: no such field; did you mean 'steps'?"),
    ('del c.seed', 'seed: missing; start from configs/default.py'),
  ):
    path.write_text(f'{start}  {rest}\n  return c\n')
    said = _refused(f'--config={path}', f'--workdir={tmp_path / "run"}')
    assert said == line


def test_a_workdir_with_another_config_or_something_else(tmp_path):
  directory = tmp_path / 'run'
  directory.mkdir()
  workdir.write_json(
    directory / 'config.json', tiny_run.values(seed=3, thaw__steps=7)
  )
  assert _refused(CONFIG, f'--workdir={directory}') == (
    f'workdir = {directory}: holds a run of another config; different: '
    'seed (3 there, 0 here), thaw.steps (7 there, 12 here)'
  )
  assert os.listdir(directory) == ['config.json']
  assert "holds 'run' but no config.json" in _refused(
    CONFIG, f'--workdir={tmp_path}'
  )
  path = directory / 'config.json'
  assert 'is a file, must be a directory' in _refused(
    CONFIG, f'--workdir={path}'
  )
  assert f'{path}/run: Not a directory' in _refused(
    CONFIG, f'--workdir={path}/run'
  )


def test_a_workdir_in_use(tmp_path):
  with workdir.locked(tmp_path):
    said = _refused(CONFIG, f'--workdir={tmp_path}')
  assert said == f'workdir = {tmp_path}: in use by process {os.getpid()}'
  assert os.listdir(tmp_path) == ['.lock']


def test_no_wiring_to_slice(tmp_path):
  said = _refused(
    CONFIG,
    f'--workdir={tmp_path / "run"}',
    '--config.teacher.model=tiny_run:unwired',
  )
  assert said == (
    "compression.init = 'slice': this teacher.model gives no wiring; allowed: "
    'random, pca'
  )


@pytest.mark.parametrize(
  'arguments',
  [
    ('--config.batch_size=-4',),
    pytest.param(('--nonsense',), marks=pytest.mark.thorough),
  ],
)
def test_a_process_of_its_own_says_the_same(tmp_path, arguments):
  ended = subprocess.run(
    [
      *(sys.executable, '-m', 'cbkd_jax.train', CONFIG),
      *(f'--workdir={tmp_path / "run"}', *arguments),
    ],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'PYTHONPATH': f'{HERE.parent}:{HERE}'},
  )
  assert (ended.returncode, ended.stdout) == (2, '')
  said = _refused(CONFIG, f'--workdir={tmp_path / "run"}', *arguments)
  assert ended.stderr == f'error: {said}\n'
  assert not (tmp_path / 'run').exists()


def test_ctrl_c_leaves_no_traceback(tmp_path, monkeypatch):
  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr('cbkd_jax.data.load', interrupt)
  ended = cli.call('cbkd_jax.train', CONFIG, f'--workdir={tmp_path / "run"}')
  assert ended == (75, '', 'error: interrupted; what was saved is kept\n')
  assert not (tmp_path / 'run').exists()
