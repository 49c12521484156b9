"""Who runs when, and what the times say."""

import numpy as np

from cbkd_jax import timing


class Clock:
  """Seconds that pass only when something says so."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now

  def lasting(self, *seconds):
    """A call that takes these in turn, the last one ever after."""
    rest = list(seconds)

    def call():
      self.now += rest.pop(0) if len(rest) > 1 else rest[0]

    return call


def test_turns_change_places_until_the_time_is_over(monkeypatch):
  clock, order = Clock(), []
  monkeypatch.setattr(timing.time, 'perf_counter', clock)

  def run(name, seconds):
    def one():
      order.append(name)
      clock.now += seconds
      return seconds + len(order)

    return one

  runs = {'a': run('a', 1), 'b': run('b', 2)}
  # Nine seconds are over after three rounds of three: a fourth begins.
  times = timing.take_turns(runs, most=9, least=2, seconds=9, warm_up=1)
  assert ''.join(order) == 'ab' + 'abba' * 2
  np.testing.assert_array_equal(times['a'], [4, 7, 8, 11])
  np.testing.assert_array_equal(times['b'], [6, 7, 10, 11])
  for most, least, rounds in ((9, 5, 5), (3, 5, 3)):
    times = timing.take_turns(runs, most=most, least=least, seconds=0)
    assert len(times['a']) == len(times['b']) == rounds


def test_quartiles_are_in_milliseconds():
  found = timing.Latency.of(np.array([0.004, 0.001, 0.002, 0.005, 0.003]))
  np.testing.assert_allclose(found, (3, 2, 4), rtol=1e-12)


def test_a_calls_own_seconds(monkeypatch):
  clock = Clock()
  monkeypatch.setattr(timing.time, 'perf_counter', clock)
  run = timing.timed(clock.lasting(0.5, 0.25))
  assert [run(), run()] == [0.5, 0.25]
