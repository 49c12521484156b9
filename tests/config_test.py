"""Fields by themselves, and every config that is shipped."""

import ast
from pathlib import Path

import cli
import pytest
from ml_collections import ConfigDict

from cbkd_jax import config, experiment
from cbkd_jax.errors import UserError

CONFIGS = Path(__file__).parent.parent / 'configs'
NAMES = sorted(p.stem for p in CONFIGS.glob('*.py') if p.stem != '__init__')


def test_the_configs_that_the_others_build_on_are_there():
  assert {'default', 'digits'} <= set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_a_shipped_config_says_what_it_is_and_imports_nothing_of_ours(name):
  tree = ast.parse((CONFIGS / f'{name}.py').read_text())
  docstring = ast.get_docstring(tree)
  assert docstring
  if name != 'default':
    assert f'--config=configs/{name}.py' in docstring
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      assert not any(a.name.startswith('cbkd_jax') for a in node.names)
    if isinstance(node, ast.ImportFrom):
      assert not node.module.startswith('cbkd_jax')


@pytest.mark.parametrize('name', NAMES)
def test_a_shipped_config_plans_without_data(name, tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'no_data'))
  # What it costs to compile the counting of FLOPs is another test's.
  monkeypatch.setattr('cbkd_jax.summary.show_plan', lambda *_: print('plan'))
  ended = cli.call(
    'cbkd_jax.train', f'--config={CONFIGS}/{name}.py', '--dry_run'
  )
  assert ended == (0, 'plan\n', '')
  assert list(tmp_path.iterdir()) == []


def test_a_plan_shows_stages_and_objectives_and_writes_nothing(tmp_path):
  ended = cli.call(
    'cbkd_jax.train',
    f'--config={Path(__file__).parent}/tiny_run.py',
    f'--workdir={tmp_path / "run"}',
    '--dry_run',
    '--config.thaw.objective=0.5*ce + kd(temperature=2)',
    '--config.cache.prefix',
  )
  assert (ended.code, ended.err) == (0, '')
  assert not (tmp_path / 'run').exists()
  lines = ended.out.splitlines()
  # 96 x (4 x 4 x 4 of bfloat16, ten logits) bytes.
  assert 'stage_2 keeps 1 view(s) of 96 images: 0.0 MiB' in lines
  assert not any(line.startswith('thaw keeps') for line in lines)
  (first,) = [line for line in lines if line.startswith(' stage_1 ')]
  # Adapter in, 3x3 convolution with bias and normalisation, classifier.
  trained = (6 * 3 + 3) + (9 * 3 * 4 + 3 * 4) + (4 * 10 + 10)
  assert first.split()[:4] == ['stage_1', 'T', 'T', 'S']
  assert f' {trained:,} ' in first
  assert first.split()[-1] == '6'
  assert ' steps, ce(label_smoothing=0.0)\n' in ended.out
  ce = 'ce(label_smoothing=0.0)'
  assert f'stage_1: 0.1*{ce} + 0.9*kd(temperature=4.0, stand' in ended.out
  assert f'thaw: 0.5*{ce} + kd(temperature=2.0, stand' in ended.out


def test_every_default_passes_and_is_plain():
  values = config.defaults()
  config.check(values)
  experiment.build(values)
  assert values['teacher']['model'] == 'resnet56'
  assert not any(isinstance(v, ConfigDict) for v in values.values())


def test_plain_values_follow_no_later_change():
  source = ConfigDict({'seed': 1, 'thaw': {'steps': 2}})
  values = config.plain(source)
  source.thaw.steps = 3
  assert values == {'seed': 1, 'thaw': {'steps': 2}}


def _changed(field, value):
  values = config.defaults()
  *path, name = field.split('.')
  group = values
  for key in path:
    group = group[key]
  group[name] = value
  return values


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('seed', 0),
    ('seed', 2**31 - 1),
    ('inherit', 2),
    ('stage.steps', None),
    ('stage.steps', 1),
    ('thaw.epochs', 0.01),
    ('thaw.clip_norm', 0.0),
    ('thaw.warmup', 0.0),
    ('thaw.warmup', 0.999),
    ('steps_per_call', None),
    ('data.mean', (0.1, 0.2, 0.3)),
    ('data.std', ()),
    ('compression.depth', ()),
    ('stage_overrides.stage_1.steps', 7),
    ('stage_overrides.stage_1.schedule', 'step'),
  ],
)
def test_an_allowed_value(field, value):
  config.check(_changed(field, value))


@pytest.mark.parametrize(
  ('field', 'value', 'allowed'),
  [
    ('seed', -1, 'an integer from 0 to 2147483647'),
    ('seed', 2**31, 'an integer from 0 to 2147483647'),
    ('batch_size', 0, 'an integer of at least 1'),
    ('stage.steps', 0, 'an integer of at least 1, or None'),
    ('thaw.epochs', 0.0, 'a number above 0'),
    ('thaw.epochs', float('nan'), 'a number above 0'),
    ('thaw.epochs', float('inf'), 'a number above 0'),
    ('teacher.learning_rate', -0.1, 'a number above 0'),
    ('thaw.warmup', 1.0, 'a fraction from 0 to below 1'),
    ('thaw.clip_norm', -1.0, 'a number of at least 0 (0: no clipping)'),
    ('data.std', (0.1, 0.0, 0.1), 'a tuple of one number above 0 per channel'),
    ('data.classes', 1, 'an integer of at least 2'),
    ('compression.keep', (True, 0.5, 0.5), 'a tuple of one number per block'),
    ('stage_overrides.stage_2.steps', 0, 'an integer of at least 1'),
    ('spmd', 'pjit', 'one of pmap, shard_map'),
    ('order', 'clockwize', 'one of counterclockwise, clockwise, joint'),
  ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(
  field, value, allowed
):
  with pytest.raises(UserError) as caught:
    config.check(_changed(field, value))
  assert str(caught.value).startswith(f'{field} = {value!r}: must be {allowed}')


def test_fields_that_are_unknown_or_missing():
  values = config.defaults()
  values['thaw']['epoch'] = 3
  with pytest.raises(
    UserError, match=r"^thaw\.epoch: no such field; did you mean 'epochs'\?$"
  ):
    config.check(values)
  values = config.defaults()
  del values['thaw']['epochs']
  with pytest.raises(UserError, match=r'^thaw\.epochs: missing'):
    config.check(values)
  with pytest.raises(UserError, match=r'^thaw = 3: wrong kind of value$'):
    config.check(_changed('thaw', 3))
