"""Where the time goes: spans are counted once, and the parts add up."""

import time

import jax
import jax.numpy as jnp
import pytest

import cbkd_jax
from cbkd_jax import wall


@pytest.mark.parametrize(
  ('spans', 'seconds'),
  [
    ([], 0),
    ([(1, 2), (4, 7)], 4),
    ([(1, 2), (2, 3)], 2),
    # Nested: the inner one ends first.
    ([(2, 3), (4, 5), (1, 6)], 5),
    ([(0, 1), (2, 3), (2.5, 4)], 3),
    ([(1, 2), (1, 2)], 1),
    ([(3, 3)], 0),
  ],
)
def test_what_overlaps_is_counted_once(spans, seconds):
  covered = wall.Covered()
  for span in spans:
    covered.add(*span)
  assert covered.seconds() == seconds


def test_the_parts_add_up_and_compiling_is_noticed():
  wall.begin()
  first = wall.seconds()
  wall.begin()  # says nothing new
  began = time.monotonic()
  jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((7, 5)))
  took = time.monotonic() - began
  time.sleep(0.05)
  before = time.monotonic() - cbkd_jax.BEGAN
  found = wall.seconds()
  after = time.monotonic() - cbkd_jax.BEGAN
  assert before <= sum(found.values()) <= after
  assert found['import_seconds'] == first['import_seconds'] > 0
  assert 0 < found['compile_seconds'] - first['compile_seconds'] <= took
  assert found['run_seconds'] - first['run_seconds'] >= 0.05


def test_an_unknown_jax_or_a_clock_that_is_set_gives_no_nonsense():
  event = '/jax/core/compile/backend_compile_duration'
  for name, duration, expected in (
    ('/jax/some/other_event', 1e9, False),
    (event, -5.0, False),
    (event, 1e9, True),
  ):
    process = wall._Process()
    process.imported = time.monotonic()
    process.note(name, duration, fun_name='step')
    passed = time.monotonic() - process.imported
    assert 0 <= process.compiling.seconds() <= passed
    assert (process.compiling.seconds() > 0) == expected
