import json

import cli
import jax
import numpy as np
import pytest
import tiny_run

from cbkd_jax import benchmarking, measure, minimum, peaks, roofline
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

EFFORT = benchmarking.Effort(rounds=5, seconds=0, examples=20)
FIELDS = {
  'name',
  'spmd',
  'devices',
  'batch_size',
  'examples_per_second',
  'step_ms',
  'compile_seconds',
  'flops_per_example',
  'analytic_flops_per_example',
  'bytes_per_example',
  'peak_memory_bytes',
  'ratio_to_naive',
  'cached_ratio_to_naive',
}


def run(values=None, **changes):
  return benchmarking.benchmark(
    values or tiny_run.values(),
    **{
      'devices': (1,),
      'spmd': ('pmap',),
      'names': ['stage_1'],
      'effort': EFFORT,
      'profile': None,
      'console': tiny_run.console(),
    }
    | changes,
  )


@pytest.fixture(scope='module')
def found():
  return run(names=['stage_1', 'plain'])


def test_the_rows(found, tmp_path):
  stage, plain = json.loads(json.dumps(found))['rows']
  for row in stage, plain:
    assert row.keys() >= FIELDS
    assert (row['spmd'], row['devices']) == ('pmap', 1)
    assert row['calls'] == 5
    assert row['step_ms'] * row['examples_per_second'] == pytest.approx(
      1e3 * row['batch_size']
    )
    low, high = row['step_ms_quartiles']
    assert 0 < low <= row['step_ms'] <= high
    # The counts are XLA's, of networks that are mostly normalisation.
    least = row['analytic_flops_per_example']
    assert 0.9 * least < row['flops_per_example'] < 4 * least
    assert row['flops_per_second'] == pytest.approx(
      row['flops_per_example'] * row['examples_per_second']
    )
    # At least the split, twice the parameters and one activation.
    assert row['peak_memory_bytes'] > 20 * 64
    assert row['compile_seconds'] > 0
  assert stage['ratio_to_naive'] > 0
  assert stage['cached_flops_per_example'] < stage['flops_per_example']
  assert plain['cached_ratio_to_naive'] is None
  assert found['peak']['source'] == 'measured'
  assert 1e8 < found['peak']['flops'] < 1e15
  console = tiny_run.console()
  benchmarking.show(found, console)
  shown = console.file.getvalue()
  assert f'{stage["examples_per_second"]:,.0f}' in shown
  assert f'{plain["flops_per_example"] / 1e6:,.1f}' in shown
  for ending in '.png', '.svg':
    roofline.draw(found, tmp_path / f'plot{ending}')
  assert 'stage_1' in (tmp_path / 'plot.svg').read_text()


def test_the_rows_of_a_config():
  exp = benchmarking.experiment.build(
    tiny_run.values(objective='ce + ab()'), tuple(jax.devices()[:1])
  )
  found = benchmarking.phase_specs(exp)
  assert list(found) == [
    'stage_1_pre',
    'stage_1',
    'stage_2_pre',
    'stage_2',
    'thaw',
    'joint_pre',
    'joint',
    'plain',
  ]
  assert all(found['joint'].trained)
  assert found['plain'].teacher is None
  naive = measure.naive(found['stage_1'])
  assert naive.shared == 0
  first = minimum.part_flops(naive.student.parts[:2], (8, 8, 1))
  least = minimum.step_flops(found['stage_1'])
  assert minimum.step_flops(naive) - least == sum(first)
  # An objective that looks at two views does all of it twice.
  exp = benchmarking.experiment.build(
    tiny_run.values(objective='mlkd()'), tuple(jax.devices()[:1])
  )
  twice = benchmarking.phase_specs(exp)['stage_1']
  assert minimum.step_flops(twice) == 2 * least


def test_turns_are_taken():
  order = []

  class Fake:
    def __init__(self, name):
      self.name = name

    def run(self):
      order.append(self.name)
      return float(len(order))

  times = measure.take_turns({'a': Fake('a'), 'b': Fake('b')}, 7, 1e9)
  # Two rounds to warm up; then places change from round to round.
  assert ''.join(order) == 'abab' + 'abba' * 3 + 'ab'
  np.testing.assert_array_equal(times['a'], [5, 8, 9, 12, 13, 16, 17])
  times = measure.take_turns({'a': Fake('a')}, 50, 0.0)
  assert len(times['a']) == 5


def test_a_known_device_has_the_peak_of_its_data_sheet():
  class Device:
    device_kind = 'NVIDIA H100 PCIe'

  found = peaks.peak(Device(), 'bfloat16')
  assert found == peaks.Peak(756e12, 2e12, 'data sheet')
  Device.device_kind = 'NVIDIA H100 80GB HBM3'
  assert peaks.peak(Device(), 'float32').flops == 494e12


def test_a_card_of_a_similar_name_is_measured(monkeypatch):
  class Device:
    device_kind = 'NVIDIA L40'  # neither an L4 nor an L40S

  monkeypatch.setattr(peaks, '_measure', lambda device, dtype: (1.0, 2.0))
  assert peaks.peak(Device(), 'float32') == peaks.Peak(1.0, 2.0, 'measured')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'devices': (5,)}, r'--devices: 5: this machine has 4 device\(s\)'),
    ({'spmd': ('vmap',)}, "--spmd: 'vmap': must be one of pmap, shard_map"),
    ({'names': ['stage_9']}, "--names: 'stage_9': must be one of stage_1, "),
  ],
)
def test_what_there_is_not(changes, message):
  with pytest.raises(UserError, match=message):
    run(**changes)


def test_a_file_that_cannot_be_written_is_refused_at_once():
  for flags, message in (
    (['--plot=roof.gif'], '--plot: roof.gif: must end in .png, .svg, .pdf'),
    (['--json=no/such/x.json'], 'no/such/x.json: there is no such directory'),
    (['--devices=two'], '--devices: two: must be numbers'),
    ([f'--profile={__file__}'], 'benchmark_test.py: is not a directory'),
  ):
    ended = cli.call('cbkd_jax.benchmark', '--config=configs/digits.py', *flags)
    assert ended.code == 2
    assert message in ended.err
