"""How many steps a call takes."""

import dataclasses

import pytest

from cbkd_jax.fit import Pace

PACE = Pace(512, per_call=100, checkpoint_every=500, log_every=50, fixed=False)


@pytest.mark.parametrize(
  ('steps', 'per_call'),
  [
    (225, 75),  # three calls of one program, not two and a shorter one
    (3920, 98),
    (1000, 100),
    (90, 100),  # one call of 90
    (101, 100),  # a prime: none divides it
    (122, 61),
    (106, 53),
    (94 * 3, 94),
    (2 * 3 * 7 * 47, 94),
    (49 * 101, 100),  # halves of a call and less are too many calls
  ],
)
def test_calls_of_a_phase_are_of_one_length_where_that_is_possible(
  steps, per_call
):
  found = PACE.of(steps)
  assert found == dataclasses.replace(PACE, per_call=per_call)


def test_what_the_config_says_stays():
  fixed = dataclasses.replace(PACE, fixed=True)
  assert fixed.of(225) is fixed
