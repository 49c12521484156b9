"""The training stream: complete epochs, and the same one after a resume."""

import numpy as np
import pytest

from cbkd_jax.data import sampler


@pytest.mark.parametrize('batch_size', [1, 4, 7, 10, 25])
def test_every_epoch_has_every_example_once(batch_size):
  stream = sampler.indices(3, 10, batch_size, 0, 70)
  assert stream.shape == (70, batch_size)
  assert stream.dtype == np.int32
  epochs = stream.ravel()[: 70 * batch_size // 10 * 10].reshape(-1, 10)
  np.testing.assert_array_equal(
    np.sort(epochs), np.tile(np.arange(10), (len(epochs), 1))
  )


def test_the_stream_is_one_permutation_after_the_other():
  permutations = [
    np.random.Generator(np.random.Philox(key=[5, epoch])).permutation(11)
    for epoch in range(4)
  ]
  np.testing.assert_array_equal(
    sampler.indices(5, 11, 3, 0, 14).ravel(),
    np.concatenate(permutations)[:42],
  )


@pytest.mark.parametrize('batch_size', [3, 13])
def test_a_resumed_stream_goes_on_where_it_ended(batch_size):
  whole = sampler.indices(0, 7, batch_size, 0, 20)
  # Backwards, so that nothing is left over from an earlier call.
  parts = [sampler.indices(0, 7, batch_size, s, 5) for s in (15, 10, 5, 0)]
  np.testing.assert_array_equal(np.concatenate(parts[::-1]), whole)


def test_a_late_step_needs_no_earlier_one():
  stream = sampler.indices(0, 1000, 10, 100 * 10**6, 100)
  np.testing.assert_array_equal(np.sort(stream.ravel()), np.arange(1000))


def test_seeds_and_epochs_differ():
  first, second = sampler.indices(0, 100, 100, 0, 2)
  assert (first != second).any()
  assert (sampler.indices(1, 100, 100, 0, 1)[0] != first).any()


def test_what_is_returned_may_be_changed():
  changed = sampler.indices(0, 10, 10, 0, 1)
  before = changed.copy()
  changed[:] = 0
  np.testing.assert_array_equal(sampler.indices(0, 10, 10, 0, 1), before)


def test_no_steps_are_no_examples():
  assert sampler.indices(0, 10, 4, 3, 0).shape == (0, 4)


def test_rows_are_the_same_examples_each_in_a_view():
  n, views = 7, 3
  stream = sampler.rows(2, n, 4, 0, 70, views)
  np.testing.assert_array_equal(stream % n, sampler.indices(2, n, 4, 0, 70))
  assert stream.dtype == np.int32
  # Each epoch draws one view per example; over 40 epochs all of them, evenly.
  drawn = stream.ravel() // n
  counts = np.bincount(drawn, minlength=views)
  assert len(counts) == views
  assert (abs(counts - 280 / views) < 25).all()
  of_one = drawn[stream.ravel() % n == 0]
  assert len(of_one) == 40
  assert set(of_one) == {0, 1, 2}
  # A resumed run draws what the uninterrupted one drew.
  np.testing.assert_array_equal(
    sampler.rows(2, n, 4, 33, 5, views), stream[33:38]
  )
  np.testing.assert_array_equal(
    sampler.rows(2, n, 4, 3, 5, None), sampler.indices(2, n, 4, 3, 5)
  )
