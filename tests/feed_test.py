"""What a phase's calls are given, and how long they wait for it."""

import contextlib
import time
import types

import jax
import numpy as np
import pytest
from streaming_test import BATCH, TRAIN, loaded, opened

from cbkd_jax import feed, step
from cbkd_jax.data import sampler, streaming
from cbkd_jax.errors import UserError


def begin(split, devices=4, first_step=0, total=8, per_call=3, **more):
  replicas = step.Replicas('pmap', tuple(jax.devices()[:devices]))
  training = types.SimpleNamespace(steps=total)
  return contextlib.closing(
    feed.begin(
      split,
      types.SimpleNamespace(fixed_views=None, training=training),
      seed=5,
      first_step=first_step,
      kept=None,
      batch_size=BATCH,
      per_call=per_call,
      replicas=replicas,
    )
  )


@pytest.mark.parametrize(
  # Calls end at multiples of three, the last with the phase.
  'calls',
  [((0, 3), (3, 3), (6, 2)), ((4, 2), (6, 2))],
)
def test_a_call_is_given_the_images_of_its_rows(calls):
  split, first_step = loaded().train, calls[0][0]
  with (
    begin(opened().train, first_step=first_step) as images,
    begin(split, first_step=first_step) as rows,
  ):
    for first, steps in calls:
      given, plain = images.draw(first, steps), rows.draw(first, steps)
      assert plain.examples is None
      expected = sampler.indices(5, TRAIN, BATCH, first, steps)
      expected = expected.reshape(steps, 4, -1).swapaxes(0, 1)
      for drawn in given, plain:
        np.testing.assert_array_equal(drawn.rows, expected)
        assert len(drawn.rows.sharding.device_set) == 4
      np.testing.assert_array_equal(
        given.examples.images, split.images[expected]
      )
      np.testing.assert_array_equal(
        given.examples.labels, split.labels[expected]
      )
    assert rows.waited() == 0


@pytest.fixture
def slow(monkeypatch):
  """Images that take a tenth of a second a batch."""

  def next_batch(iterator):
    time.sleep(0.1)
    return np.zeros((BATCH, 8, 8, 1), np.uint8), np.zeros(BATCH, np.int32)

  monkeypatch.setattr(streaming, 'next_batch', next_batch)


class Busy:
  """Results that take a third of a second."""

  def block_until_ready(self):
    time.sleep(0.35)
    return self


@pytest.mark.parametrize(
  ('working', 'busy', 'low', 'high'),
  [
    (0, None, 0.8, 1),  # nothing to do but to wait
    (0.35, None, 0, 0.2),  # the images are there before they are wanted
    (0, Busy(), 0, 0.2),  # the loop waits, but the devices don't
  ],
)
def test_what_is_lost_by_waiting(slow, working, busy, low, high):
  with begin(opened().train, 1, total=6, per_call=1) as images:
    assert images.waited() == 0
    for first in range(6):
      images.draw(first, 1, busy)
      if first == 0:
        assert images.waited() == 0
      time.sleep(working)
    assert low <= images.waited() <= high


def test_what_is_said_of_it():
  assert feed.waiting(0.2) is None
  assert feed.waiting(0.618) == (
    'waited for images 62 % of the time: the input is the limit, not the '
    'device; see data.workers'
  )


def test_an_error_of_a_reader_reaches_the_loop(monkeypatch):
  def next_batch(iterator):
    raise UserError('damaged')

  monkeypatch.setattr(streaming, 'next_batch', next_batch)
  with begin(opened().train) as images, pytest.raises(UserError, match='dama'):
    images.draw(0, 3)
