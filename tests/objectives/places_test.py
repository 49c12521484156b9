"""Where a method looks: words and indices against tables made by hand."""

import dataclasses

import jax.numpy as jnp
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import Setting
from cbkd_jax.objectives.places import Consecutive, Looking


@dataclasses.dataclass(frozen=True, kw_only=True)
class Glance(Looking):
  name = 'glance'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling(Glance):
  may_pool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Whole(Glance):
  whole = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairing(Consecutive):
  name = 'pairing'


# Phases of five blocks: the first, a middle and the last one trains, all do.
FIRST, THIRD, LAST, ALL = (0,), (2,), (4,), (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
  ('at', 'trained', 'of_changing', 'of_whole'),
  [
    ('cuts', FIRST, (0, 1, 2, 3, 4), (0, 1, 2, 3, 4)),
    ('cuts', THIRD, (2, 3, 4), (0, 1, 2, 3, 4)),
    ('cuts', LAST, (4,), (0, 1, 2, 3, 4)),
    ('trained', FIRST, (0,), (0,)),
    ('trained', THIRD, (2,), (2,)),
    ('trained', ALL, ALL, ALL),
    ('middle', FIRST, (2,), (2,)),
    ('middle', THIRD, (2,), (2,)),
    ('middle', LAST, (4,), (4,)),
    ('last', FIRST, (4,), (4,)),
    ('last', LAST, (4,), (4,)),
    (3, FIRST, (3,), (3,)),
    (2, THIRD, (2,), (2,)),
    ((4, 0, 2), FIRST, (0, 2, 4), (0, 2, 4)),
    # What the phase can't change is left out, unless it is to be mixed in.
    ((0, 3), THIRD, (3,), (0, 3)),
    ((4, 1), LAST, (4,), (1, 4)),
  ],
)
def test_places(at, trained, of_changing, of_whole):
  setting = Setting(blocks=5, trained=trained)
  assert Glance(at=at, setting=setting).places == of_changing
  assert Whole(at=at, setting=setting).places == of_whole


@pytest.mark.parametrize(
  ('blocks', 'middle'), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)]
)
def test_the_middle_is_the_published_hint_layer(blocks, middle):
  setting = Setting(blocks=blocks, trained=tuple(range(blocks)))
  assert Glance(at='middle', setting=setting).places == (middle,)


def test_pooled_is_no_block():
  assert Pooling(at='pooled').places == ()


def test_look():
  features = tuple(jnp.full((2, 1, 1, 3), i) for i in range(3))
  view = View(jnp.zeros(()), features, (), jnp.ones((2, 3)))
  setting = Setting(blocks=3, trained=(1,))
  found = Glance(setting=setting).look(view)
  assert len(found) == 2
  assert found[0] is features[1]
  assert found[1] is features[2]
  (found,) = Glance(at=2, setting=setting).look(view)
  assert found is features[2]
  (found,) = Pooling(at='pooled', setting=setting).look(view)
  assert found is view.pooled


def test_look_at_pre_activations():
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Before(Glance):
    pre_activations = True

  view = View(None, (None, None), (jnp.zeros(1), jnp.ones(1)), None)
  (found,) = Before(at=1, setting=Setting(blocks=2)).look(view)
  assert found is view.pre_activations[1]


def test_pairs():
  one, two = (
    View(None, tuple(jnp.full((1,), i + k) for i in range(3)), (), jnp.ones(1))
    for k in (0, 10)
  )
  setting = Setting(blocks=3, trained=(1,))
  found = Glance(setting=setting).pairs(one, two)
  assert [(cut, int(x[0]), int(y[0])) for cut, x, y in found] == [
    (1, 1, 11),
    (2, 2, 12),
  ]
  # A pooled vector is behind no block.
  with pytest.raises(ValueError, match='longer than'):
    Pooling(at='pooled', setting=setting).pairs(one, two)


@pytest.mark.parametrize(
  ('trained', 'at', 'expected'),
  [
    ((0,), 'cuts', (0, 1, 2, 3)),
    ((1,), 'cuts', (0, 1, 2, 3)),
    ((2,), 'cuts', (1, 2, 3)),
    ((3,), 'cuts', (2, 3)),
    ((3,), (0, 1, 3), (1, 3)),
    ((1, 2), 'trained', (1, 2)),
  ],
)
def test_a_pair_of_blocks_needs_one_that_changes(trained, at, expected):
  method = Pairing(at=at, setting=Setting(blocks=4, trained=trained))
  assert method.places == expected
  method.check_places()


def test_a_single_block_is_no_pair():
  with pytest.raises(UserError) as caught:
    Pairing(at='last', setting=Setting(blocks=3)).check_places()
  assert str(caught.value) == (
    "pairing.at = 'last': pairing relates a block to an earlier one, and this "
    'is block 2 alone'
  )


@pytest.mark.parametrize(
  'at',
  [
    'cut',
    '',
    'pooled',
    -1,
    True,
    1.0,
    None,
    (),
    (0, 0),
    (0, -1),
    (0, True),
    ('cuts',),
    ('cuts', 1),
    ((0,),),
    ([],),
    [0],
  ],
)
def test_what_at_may_not_be(at):
  words = "'cuts', 'trained', 'middle', 'last'"
  with pytest.raises(UserError) as caught:
    Glance(at=at)
  assert str(caught.value) == (
    f'glance.at = {at!r}: must be {words}, or different block indices from 0'
  )


def test_words_for_methods_that_may_pool():
  with pytest.raises(UserError, match="'last', 'pooled', or different block"):
    Pooling(at='pool')


@pytest.mark.parametrize(
  ('cls', 'at', 'message'),
  [
    (Glance, 5, 'glance.at = 5: this network has blocks 0 to 4'),
    (Glance, (5, 1), 'glance.at = (5, 1): this network has blocks 0 to 4'),
    (
      Glance,
      1,
      'glance.at = 1: thaw changes nothing before block 2; allowed are blocks '
      "2 to 4 or 'trained'",
    ),
    (Whole, (1, 0), 'glance.at = (1, 0): thaw changes nothing before block 2'),
  ],
)
def test_blocks_that_a_phase_has_not(cls, at, message):
  method = cls(at=at, setting=Setting(blocks=5, trained=(2, 4), name='thaw'))
  with pytest.raises(UserError) as caught:
    _ = method.places
  assert str(caught.value).startswith(message)
