"""The interface: options and their checks, settings, published epochs."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import (
  BatchWise,
  Learned,
  Method,
  Setting,
  published_epoch,
  warm_up,
)
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import Connected

pytestmark = pytest.mark.usefixtures('quick_compilation')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample(Method):
  number: float = 1.0
  other: float = 0.5
  word: str = 'a'
  name: ClassVar[str] = 'sample'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixed(Looking, Learned, BatchWise):
  zeal: float = 1.0
  ardour: float = 1.0
  name: ClassVar[str] = 'mixed'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bare(Mixed):
  pass


def test_options_are_fields_shared_ones_last():
  assert list(Method.options()) == []
  assert list(Sample.options()) == ['number', 'other', 'word']
  options = ['zeal', 'ardour', 'at', 'learning_rate', 'global_batch']
  assert list(Mixed.options()) == options
  # A class that adds none shows what it inherits, and no class variables.
  assert list(Bare.options()) == options
  assert Mixed.options()['zeal'].default == 1.0


def test_a_shared_option_with_another_default_is_no_own_one():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Sure(Connected, Mixed):
    regressor: str = 'none'
    at: str = 'last'
    more: int = 1

  *own, at, rate, batch, regressor = Sure.options().values()
  assert {field.name for field in own} == {'zeal', 'ardour', 'more'}
  assert (at.name, at.default) == ('at', 'last')
  assert (rate.name, batch.name) == ('learning_rate', 'global_batch')
  assert (regressor.name, regressor.default) == ('regressor', 'none')


def test_all_bases_check_their_options():
  with pytest.raises(UserError, match=r'^mixed.at = -1: must be'):
    Mixed(at=-1)
  with pytest.raises(UserError, match=r'^mixed.learning_rate = 0: must be ab'):
    Mixed(learning_rate=0)


@pytest.mark.parametrize('rate', [None, 1, 0.5])
def test_a_learning_rate(rate):
  assert Mixed(learning_rate=rate).learning_rate == rate


@pytest.mark.parametrize(
  ('rate', 'message'),
  [
    (True, 'True: must be a number above 0 or None'),
    ('1', "'1': must be a number above 0 or None"),
    ((1,), '(1,): must be a number above 0 or None'),
    (-1.0, '-1.0: must be above 0'),
    (float('nan'), 'nan: must be above 0'),
    (float('inf'), 'inf: must be above 0'),
  ],
)
def test_what_a_learning_rate_may_not_be(rate, message):
  with pytest.raises(UserError) as caught:
    Mixed(learning_rate=rate)
  assert str(caught.value) == f'mixed.learning_rate = {message}'


INF, NAN = float('inf'), float('nan')


@pytest.mark.parametrize(
  ('check', 'good', 'bad', 'allowed'),
  [
    ('require_positive', (1e-9, 3), (0.0, -1.0, INF, NAN), 'above 0'),
    ('require_from_zero', (0.0, 3), (-1e-9, INF, -INF, NAN), 'at least 0'),
    (
      'require_fraction',
      (0.0, 0.999),
      (1.0, -0.1, INF, NAN),
      'from 0 to below 1',
    ),
  ],
)
def test_required_numbers(check, good, bad, allowed):
  for number in good:
    getattr(Sample(number=number), check)('number')
  for number in bad:
    with pytest.raises(UserError) as caught:
      getattr(Sample(number=number), check)('number')
    assert str(caught.value) == f'sample.number = {number}: must be {allowed}'


@pytest.mark.parametrize('check', ['positive', 'from_zero', 'fraction'])
def test_every_option_named_is_checked(check):
  method = Sample(number=0.5, other=-1.0)
  with pytest.raises(UserError, match=r'^sample.other = -1.0: must be'):
    getattr(method, f'require_{check}')('number', 'other')


def test_required_words():
  Sample(word='b').require_choice('word', ('a', 'b'))
  with pytest.raises(UserError) as caught:
    Sample(word='c').require_choice('word', ('a', 'b'))
  assert str(caught.value) == "sample.word = 'c': must be one of 'a', 'b'"


def test_the_setting_is_no_option():
  bound = dataclasses.replace(Sample(), setting=Setting(steps=7))
  assert bound.setting.steps == 7
  assert 'setting' not in repr(bound)


def test_a_replicas_batch():
  assert Setting(batch_size=12, replicas=4).micro_batch == 3
  assert Setting(batch_size=12).micro_batch == 12


def epochs(setting, steps):
  found = jax.vmap(lambda step: published_epoch(setting, step))(steps)
  assert found.dtype == jnp.float32
  return found


@pytest.mark.parametrize('per_epoch', [1, 3, 7, 391, 782])
def test_a_phase_of_published_length_counts_its_epochs(per_epoch):
  setting = Setting(
    steps=240 * per_epoch, batch_size=64, train_size=64 * per_epoch
  )
  steps = np.arange(240 * per_epoch)
  np.testing.assert_array_equal(epochs(setting, steps), 1 + steps // per_epoch)


@pytest.mark.parametrize('count', [241, 480, 700])
def test_a_longer_phase_counts_its_own(count):
  setting = Setting(steps=count * 97, batch_size=2, train_size=194)
  steps = np.arange(count * 97)
  np.testing.assert_array_equal(epochs(setting, steps), 1 + steps // 97)


def test_a_shorter_phase_runs_through_all():
  # Half as long, a fortieth, and so short that steps jump over epochs.
  setting = Setting(steps=1200, batch_size=1, train_size=10)
  steps = np.arange(1200)
  np.testing.assert_array_equal(epochs(setting, steps), 1 + steps // 5)
  setting = Setting(steps=600, batch_size=1, train_size=100)
  steps = np.arange(600)
  np.testing.assert_array_equal(epochs(setting, steps), 1 + steps * 2 // 5)
  setting = Setting(steps=3, batch_size=1, train_size=100)
  np.testing.assert_array_equal(epochs(setting, np.arange(3)), [1, 81, 161])


def test_last_batches_that_are_dropped_do_not_shift_epochs():
  # 50,000 examples in batches of 64: 781 whole ones.
  setting = Setting(steps=240 * 781, batch_size=64, train_size=50_000)
  steps = np.asarray([0, 780, 781, 239 * 781 - 1, 239 * 781, 240 * 781 - 1])
  np.testing.assert_array_equal(
    epochs(setting, steps), [1, 1, 2, 239, 240, 240]
  )


def test_a_weight_warms_up():
  found = [float(warm_up(jnp.float32(e), 20.0)) for e in (1, 10, 20, 40)]
  np.testing.assert_allclose(found, [0.05, 0.5, 1.0, 1.0])
  assert warm_up(jnp.float32(1), 0.0) == 1.0
