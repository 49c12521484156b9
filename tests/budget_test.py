"""The chosen keep ratios against all there are, their costs against counts."""

import dataclasses
import functools
import itertools
import random

import jax.numpy as jnp
import pytest
import tiny

from cbkd_jax import (
  budget,
  budget_costs,
  budget_search,
  compression,
  counting,
  models,
)
from cbkd_jax.budget import BlockCosts, OutOfReachError, Target
from cbkd_jax.errors import UserError
from cbkd_jax.models import vgg

pytestmark = pytest.mark.usefixtures('quick_compilation')

FIXED = 7.0


def tables(seed):
  """Random costs of three blocks with four candidates each, and damages."""
  rng = random.Random(seed)
  costs, damages = [], []
  for block in range(3):
    widths = sorted(rng.sample(range(1, 12), 4), reverse=True)
    costs.append(
      BlockCosts(
        keep=tuple(w / 12 for w in widths),
        channels=tuple(widths),
        own=tuple(float(rng.randint(1, 9) * w * w) for w in widths),
        per_channel=tuple(float(w * (block > 0)) for w in widths),
      )
    )
    # Also such that fall, and such that are the same.
    measured = [rng.choice([0, 0.5, 1, 1.5]) for _ in widths]
    damages.append(rng.choice([sorted(rng.random() for _ in widths), measured]))
  return costs, damages, rng


def brute_force(costs, damages, target, tolerance, any_order):
  """The choice, or the costs next to the target."""
  every = []
  for choice in itertools.product(range(4), repeat=3):
    keep = [block.keep[i] for block, i in zip(costs, choice)]
    if not any_order and any(a < b for a, b in itertools.pairwise(keep)):
      continue
    total = FIXED
    for n, i in enumerate(choice):
      total += costs[n].own[i]
      if n:
        before = costs[n - 1].channels[choice[n - 1]]
        total += before * costs[n].per_channel[i]
    damage = sum(row[i] for row, i in zip(damages, choice))
    every.append((damage, total, choice))
  band = [e for e in every if (1 - tolerance) * target <= e[1] <= target]
  if band:
    return min(band)[2]
  above = [e for e in every if target < e[1] <= (1 + tolerance) * target]
  if above:
    return min(above, key=lambda e: (e[1], e[0], e[2]))[2]
  below = [e[1] for e in every if e[1] <= target]
  above = [e[1] for e in every if e[1] > target]
  return (max(below) if below else None, min(above) if above else None)


@pytest.mark.parametrize('any_order', [False, True])
@pytest.mark.parametrize('tolerance', [0.02, 0.2])
def test_the_choice_is_the_best_of_all_there_are(any_order, tolerance):
  chosen = 0
  for seed in range(40):
    costs, damages, rng = tables(seed)
    target = rng.uniform(0, 1.1) * budget.cost(costs, (0, 0, 0), FIXED)
    expected = brute_force(costs, damages, target, tolerance, any_order)
    more = {'fixed': FIXED, 'tolerance': tolerance, 'any_order': any_order}
    try:
      found = budget.solve(costs, damages, target, **more)
      chosen += 1
    except OutOfReachError as error:
      found = error.below, error.above
    assert found == expected, seed
  assert chosen > 3


def test_a_larger_target_never_gives_a_cheaper_choice():
  for seed in range(6):
    costs, damages, _ = tables(seed)
    least, most = budget.extremes(costs, any_order=True)
    before = 0.0
    for step in range(12):
      target = least + (most - least) * step / 11
      try:
        found = budget.solve(costs, damages, target, any_order=True)
      except OutOfReachError:
        continue
      assert budget.cost(costs, found) >= before
      before = budget.cost(costs, found)
    assert before > least


def choice(teacher, image_shape, **changes):
  """Among the students of a teacher's own blocks."""
  settings = {'depth': (), 'inherit': 1, **changes}
  return budget_costs.Choice(
    student=lambda keep: compression.compress(
      teacher, keep=keep, allow_any_order=True, **settings
    ),
    network=lambda student: student.network(jnp.float32, folded=True),
    teacher=teacher.network(),
    widths=teacher.widths,
    image_shape=image_shape,
    inherit=settings['inherit'],
  )


@functools.cache
def published(name):
  return choice(models.build(name, 10, (32, 32, 3)), (32, 32, 3))


@pytest.mark.parametrize(
  ('name', 'fractions'),
  [
    ('resnet20', (0.1, 0.25, 0.5)),
    pytest.param(*('resnet56', (0.1, 0.25, 0.5)), marks=pytest.mark.thorough),
    pytest.param(*('vgg13', (0.05, 0.1, 0.5)), marks=pytest.mark.thorough),
    ('wrn_16_2', (0.1, 0.25, 0.5)),
  ],
)
def test_published_networks_meet_three_budgets(name, fractions):
  among, sizes = published(name), [0]
  whole = among.cost(among.teacher, 'params')
  for fraction in fractions:
    found = budget_search.find(among, Target('params', fraction), None)
    assert found.keep[0] == 1
    assert sorted(found.keep, reverse=True) == list(found.keep)
    # None is whole beside one that has hardly a channel.
    assert min(found.keep[1:]) > 0.1 * max(found.keep[1:])
    size = among.cost(among.network(among.student(found.keep)), 'params')
    assert found.got == size / whole
    assert 0.98 * fraction <= found.got <= fraction
    sizes.append(size)
  assert sizes == sorted(sizes)


@pytest.mark.parametrize('kind', counting.KINDS)
def test_predicted_costs_are_those_that_are_counted(kind):
  among = published('wrn_16_2')
  table = budget_costs.tabulate(among, kind)
  assert [len(block.keep) for block in table.blocks] == [64, 56]
  # First a pair of widths that no count was of.
  for indices in [(11, 30), (40, 40)]:
    keep = [block.keep[i] for block, i in zip(table.blocks, indices)]
    student = among.student(among.keep(keep))
    assert [b.channels[i] for b, i in zip(table.blocks, indices)] == list(
      student.widths[1:]
    )
    predicted = budget.cost(table.blocks, indices, table.fixed)
    costs = counting.per_block(among.network(student), among.image_shape)
    rounding = 1e-6 if kind == 'flops_per_example' else 0
    assert predicted == pytest.approx(
      counting.total(costs)[kind], rel=rounding, abs=0
    )


def uneven(widths):
  """A teacher whose blocks of odd width have a unit more."""

  def block(index, width, units):
    return vgg.VGGBlock(width, units + width % 2, index < 2, jnp.float32, None)

  plain = tiny.architecture()
  return dataclasses.replace(plain, widths=widths, block=block)


def test_costs_that_are_no_polynomial_are_counted_one_by_one():
  among = choice(uneven((4, 8, 24)), (8, 8, 1))
  table = budget_costs.tabulate(among, 'params')
  assert [len(block.keep) for block in table.blocks] == [8, 13]
  for indices in [(0, 3), (3, 6), (7, 12)]:
    keep = [block.keep[i] for block, i in zip(table.blocks, indices)]
    network = among.network(among.student(among.keep(keep)))
    predicted = budget.cost(table.blocks, indices, table.fixed)
    assert predicted == among.cost(network, 'params')


def test_candidates_are_the_widths_that_rounding_leaves():
  teacher = dataclasses.replace(tiny.architecture(), widths=(8, 20, 32))
  among = choice(teacher, (8, 8, 1), width_multiple_of=4)
  table = budget_costs.tabulate(among, 'params')
  assert table.blocks[0].keep == (1, 16 / 20, 12 / 20, 8 / 20, 4 / 20)
  assert table.blocks[1].channels == tuple(range(32, 0, -4))
  among = choice(teacher, (8, 8, 1), width_multiple_of=8)
  # 20 channels would become 24.
  assert budget_costs.tabulate(among, 'params').blocks[0].keep == (0.8, 0.4)
  with pytest.raises(UserError, match='width_multiple_of = 16: block 1'):
    budget_costs.tabulate(choice(teacher, (8, 8, 1), width_multiple_of=16), '')


def test_a_step_of_the_family_is_kept_to():
  teacher = dataclasses.replace(
    tiny.architecture(), widths=(4, 8, 16), width_step=4
  )
  table = budget_costs.tabulate(choice(teacher, (8, 8, 1)), 'params')
  assert [block.channels for block in table.blocks] == [(8, 4), (16, 12, 8, 4)]


def by_hand(width_1, width_2):
  """Parameters of the tiny folded student."""
  inner_1, inner_2 = int(4 * width_1 / 6 + 0.5), int(6 * width_2 / 8 + 0.5)
  return (
    (9 * 4 + 3 * 4)  # convolution with bias, and norm
    + (4 * inner_1 + inner_1 + 9 * inner_1 * width_1 + 3 * width_1)
    + (width_1 * inner_2 + inner_2 + 9 * inner_2 * width_2 + 3 * width_2)
    + (3 * width_2 + 3)
  )


def test_an_impossible_budget_says_what_is_possible():
  among = choice(tiny.architecture(), tiny.IMAGE_SHAPE)
  whole = among.cost(among.teacher, 'params')
  every = sorted(
    by_hand(a, b) / whole
    for a, b in itertools.product(range(1, 7), range(1, 9))
    if a / 6 >= b / 8
  )
  least = every[0]
  gaps = [(b / a, a, b) for a, b in itertools.pairwise(every) if b < 1]
  _, below, above = max(gaps)
  for kind, words in ('params', 'parameters'), ('bytes', 'bytes'):
    of = f"of the teacher's {words}"
    for fraction, message in (
      (0.9 * least, f'the smallest possible student has {least:.4f} {of}'),
      (
        (below + above) / 2,
        'no widths come within 2% of it; nearest are '
        f'{below:.4f} and {above:.4f} {of}',
      ),
    ):
      target = Target(kind, round(fraction, 5))
      with pytest.raises(UserError) as caught:
        budget_search.find(among, target, None)
      start = f"compression.target = '{target}': "
      assert str(caught.value) == start + message
  shallow = choice(
    tiny.architecture(units=(2, 2, 2)), tiny.IMAGE_SHAPE, depth=(2, 1, 1)
  )
  whole = shallow.cost(shallow.teacher, 'params')
  most = (by_hand(6, 8) + 9 * 4 * 4 + 3 * 4) / whole
  with pytest.raises(UserError, match=f'largest possible .* has {most:.4f} of'):
    budget_search.find(shallow, Target('params', 1.0), None)
