"""The probe: what it measures of each block, and what comes of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run
from flax import linen as nn

from cbkd_jax import (
  blocks,
  config,
  damages,
  experiment,
  probe,
  summary,
  trial_start,
  trials,
)
from cbkd_jax.batch import Examples
from cbkd_jax.blocks import BlockOutput, Variables
from cbkd_jax.data import Split
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import Preempted, UserError

CHANGES = {'compression__target': 'params:0.6', 'compression__probe': True}

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.fixture(scope='module')
def exp():
  return experiment.build(tiny_run.values())


@pytest.fixture(scope='module')
def teacher(exp):
  return tiny.draw(exp.teacher_network, exp.image_shape)


@pytest.fixture(scope='module')
def measured(exp, teacher):
  return _measure(exp, teacher)


def _measure(exp, teacher, keep=(0.25, 0.5), **arguments):
  split = Split(*tiny.images(96, exp.image_shape))
  return probe.measure(
    exp, teacher, split, tiny.PLAIN, keep=keep, steps=4, **arguments
  )


def _rescaled(teacher, factors):
  """The same function, each block's output times a factor."""
  params = [dict(tree) for tree in teacher.params]
  for i, factor in enumerate(factors):
    unit = dict(params[i]['unit_0'])
    unit['norm'] = jax.tree.map(lambda x, f=factor: x * f, unit['norm'])
    params[i]['unit_0'] = unit
    name, layer = ('unit_0', 'conv') if i < 2 else ('classifier', None)
    following = dict(params[i + 1][name])
    if layer:
      kernel = following[layer]['kernel'] / factor
      following[layer] = {**following[layer], 'kernel': kernel}
    else:
      following['kernel'] = following['kernel'] / factor
    params[i + 1][name] = following
  return Variables(tuple(params), teacher.batch_stats)


def test_losses_do_not_depend_on_the_scale_of_features(exp, teacher, measured):
  scaled = _rescaled(teacher, (10, 3, 0.2))
  images = jnp.ones((2, *exp.image_shape))
  network = exp.local.network()
  np.testing.assert_allclose(
    blocks.logits(network, scaled, images),
    blocks.logits(network, teacher, images),
    rtol=1e-4,
  )
  again = _measure(exp, scaled)
  # Of four steps from one start: the whole path is the same.
  np.testing.assert_allclose(again.losses, measured.losses, rtol=1e-3)
  assert measured.keep == (0.5, 0.25)
  assert measured.blocks == (1, 2)
  for wide, narrow in measured.losses:
    assert 0 < wide < narrow


def test_training_explains_more(exp, teacher, measured, monkeypatch):
  monkeypatch.setattr(probe, '_RATE', 0.0)
  for before, after in zip(_measure(exp, teacher).losses, measured.losses):
    assert after < before


def test_a_probe_can_be_stopped(exp, teacher):
  with pytest.raises(Preempted, match=r'^probe: not finished'):
    _measure(exp, teacher, interrupted=lambda: True)


class _Frozen(nn.Module):
  """The teacher's own block, in eval mode whatever comes."""

  inner: nn.Module

  @nn.compact
  def __call__(self, x, train):
    return self.inner(x, train=False)


class _Constant(nn.Module):
  """A student that has nothing to say but the mean."""

  @nn.compact
  def __call__(self, x, train):
    y = jnp.zeros((x.shape[0], x.shape[1] // 2, x.shape[2] // 2, 6))
    return BlockOutput(y, y, y)


@pytest.fixture(scope='module')
def alone(exp, teacher):
  """`first weights of block 1's students -> states and losses of all`."""
  network = exp.teacher_network
  student = trial_start.student(exp, exp.student, 0.5)
  small = tuple(trials.tried({0.5: student}, exp.dtype, True).values())
  group = (
    trials.Trial(1, 1.0, _Frozen(network.blocks[1]), True),
    trials.Trial(1, 1.0, _Constant(), False),
    *small,
  )
  images, labels = tiny.images(16, exp.image_shape)
  count = len(exp.replicas.devices)
  share = Examples(
    images.reshape(count, -1, *exp.image_shape), labels.reshape(count, -1)
  )
  batch = exp.replicas.put_shares(share)
  own = exp.replicas.divide(teacher)
  spreads = trials.spreads(network, own, tiny.PLAIN, exp.replicas, [batch])
  run = trials.compiled_step(network, group, tiny.PLAIN, exp.replicas)
  first = trial_start.first(exp, [0.5], teacher, None, tiny.PLAIN, spreads)
  placed = exp.replicas.put(spreads)

  def result(factor):
    params, batch_stats = first[1, 0.5]
    starts = [
      ({'inner': teacher.params[1]}, {'inner': teacher.batch_stats[1]}),
      ({}, {}),
      (jax.tree.map(lambda x: x * factor, params), batch_stats),
      first[2, 0.5],
    ]
    begun = [
      trials.start(t, f, spreads[t.block]) for t, f in zip(group, starts)
    ]
    states, sizes = exp.replicas.put(tuple(zip(*begun)))
    found = []
    for _ in range(2):
      states, losses = run(
        states, (own, placed, sizes), jnp.float32(0.02), batch
      )
      found.append(losses)
    return jax.device_get((states, found, sizes))

  return result(1.0), result(-2.0)


def test_the_loss_is_0_of_the_teacher_and_1_of_its_mean(alone):
  (_, losses, _), _ = alone
  (error, power), (nothing, same), *_ = losses[0]
  assert error < 1e-12
  assert nothing == same == power
  # The very images that the spread was measured on.
  np.testing.assert_allclose(power, 1, rtol=1e-5)


def test_blocks_do_not_depend_on_each_other(alone):
  one, other = alone
  assert not tiny.same(one[0][2], other[0][2])
  for trial in 1, 3:
    assert tiny.same(one[0][trial], other[0][trial])
    assert np.array_equal(one[1][1][trial], other[1][1][trial])


def test_a_loss_is_the_variance_that_is_left(exp, teacher, alone):
  (_, losses, _), _ = alone
  images, _ = tiny.images(16, exp.image_shape)
  x = normalise(jnp.asarray(images), tiny.PLAIN)
  network = exp.local.network()
  outputs, _ = blocks.run(network, teacher, x)
  y = np.float64(outputs[2].output)
  student = trial_start.student(exp, exp.local_student, 0.5)
  trial = trials.tried({0.5: student}, exp.dtype, True)[2, 0.5]
  spreads = [trials.Spread(1, 0, 1)] * 3
  params, batch_stats = trial_start.first(
    exp, [0.5], teacher, None, tiny.PLAIN, spreads
  )[2, 0.5]
  out, _ = trial.module.apply(
    {'params': params, 'batch_stats': batch_stats},
    outputs[1].output,
    train=True,
    mutable=['batch_stats'],
  )
  left = np.sum((np.float64(out.output) - y) ** 2)
  left /= np.sum((y - y.mean((0, 1, 2))) ** 2)
  error, power = losses[0][3]
  np.testing.assert_allclose(error / power, left, rtol=1e-4)


def test_pca_begins_better_than_the_mean(exp, teacher, monkeypatch):
  monkeypatch.setattr(probe, '_RATE', 0.0)
  values = tiny_run.values(compression__init='pca')
  found = _measure(experiment.build(values), teacher, keep=(0.5,))
  assert all(0 < loss < 1 for (loss,) in found.losses)


@pytest.mark.parametrize(
  ('changes', 'widths'),
  [({'depth': (1, 1, 1)}, (4, 3, 4)), ({'model': 'tiny_run:wider'}, (4, 4, 4))],
)
def test_trials_are_of_the_config_s_student(changes, widths):
  changes = {f'compression__{name}': value for name, value in changes.items()}
  changes['compression__init'] = 'random'
  exp = experiment.build(tiny_run.values(**changes))
  student = trial_start.student(exp, exp.student, 0.5)
  assert student.widths == widths
  assert student.family == exp.student.family


LOSSES = damages.Losses(
  keep=(0.5, 0.25),
  blocks=(1, 2),
  losses=((0.2, 0.6), (0.4, 0.3)),
  steps=4,
  seconds=1.0,
  compile_seconds=0.5,
)


def test_damages_by_hand():
  keep = (1.0, 0.75, 0.5, 0.5**1.5, 0.25, 0.125)
  first, second = damages.damages(LOSSES, [keep, keep])
  # Straight over keep to 0 at 1, over log(keep) between, over keep to 1 at 0.
  expected = [0, 0.1, 0.2, 0.4, 0.6, 0.8]
  np.testing.assert_allclose(first, [-math.log(1 - x) for x in expected])
  # The narrower one's 0.3 is noise.
  expected = [0, 0.2, 0.4, 0.4, 0.4, 0.7]
  np.testing.assert_allclose(second, [-math.log(1 - x) for x in expected])


def test_damages_never_fall_with_keep():
  poor = LOSSES._replace(losses=((0.9, 1.3), (1.5, 1.2)))
  keep = np.linspace(1, 0.01, 100)
  for row in damages.damages(poor, [keep, keep]):
    assert row[0] == 0
    assert np.all(np.diff(row) > 0)
    assert np.isfinite(row).all()


def test_what_cannot_be_tried_is_refused_before_there_is_a_teacher():
  values = tiny_run.values(
    teacher__model='tiny_run:wider',
    compression__target='params:0.47',
    compression__probe=True,
    compression__probe_keep=(0.9, 0.25),
    compression__width_multiple_of=4,
  )
  message = r'^compression.probe_keep = \(0.9, 0.25\): 0.9: .* 8 channels'
  with pytest.raises(UserError, match=message):
    experiment.build(values)


def test_the_plan_says_that_it_cannot_know():
  console = tiny_run.console()
  summary.show_plan(experiment.build(tiny_run.values(**CHANGES)), console)
  assert 'the run finds its own once it has the teacher' in ' '.join(
    console.file.getvalue().split()
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'compression__target': ''}, 'probe = True: goes with compression.target'),
    ({'compression__probe_steps': 0}, 'probe_steps = 0: must be an integer'),
    ({'compression__probe_keep': (0.5, 1.0)}, 'above 0 and below 1'),
    ({'compression__probe_keep': ()}, 'above 0 and below 1'),
  ],
)
def test_wrong_fields(changes, message):
  with pytest.raises(UserError, match=message):
    config.check(tiny_run.values(**CHANGES | changes))
