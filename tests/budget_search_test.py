"""A run with a budget: what is found, kept and said."""

import dataclasses
import json
import math

import jax
import pytest
import tiny_run
from flax import linen as nn

from cbkd_jax import (
  budget,
  budget_costs,
  budget_search,
  config,
  counting,
  experiment,
  networks,
  processes,
  shared_teacher,
  timing,
  training,
  workdir,
)
from cbkd_jax.budget import Target
from cbkd_jax.budget_search import Found
from cbkd_jax.errors import Preempted, UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

CHANGES = {
  'order': 'joint',  # one stage: a run of several is longer to compile
  'teacher__steps': 8,
  'stage__steps': 2,
  'thaw__steps': 3,
  'compression__target': 'params:0.485',
}
# Of 828 parameters 401, with 5 of 6 and 4 of 8 channels.
FOUND = Found('params:0.485', (1.0, 5 / 6, 0.5), 401 / 828)


def never(*_, **__):
  raise AssertionError('looked for anew')


@pytest.fixture(scope='module')
def run(tmp_path_factory, quick_compilation):
  """A run that was stopped, and did not look for its student again."""
  directory = tmp_path_factory.mktemp('budget') / 'run'
  calls = iter(range(10_000))
  with pytest.raises(Preempted):  # in the teacher
    tiny_run.run(directory, CHANGES, lambda: next(calls) > 3)
  assert not (directory / 'joint').exists()
  console = tiny_run.console()
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(budget_search, 'find', never)
    summary = tiny_run.run(directory, CHANGES, console=console)
  return directory, summary, console.file.getvalue()


def test_a_run_goes_on_with_the_student_that_it_has_found(run):
  directory, summary, shown = run
  found = workdir.read_json(directory / workdir.BUDGET)
  assert found == json.loads(json.dumps(dataclasses.asdict(FOUND)))
  assert workdir.read_json(directory / 'config.json')['compression'] == {
    **json.loads(json.dumps(tiny_run.values()['compression'])),
    'target': 'params:0.485',
  }
  model = workdir.read_json(directory / 'student/model.json')
  assert (model['widths'], model['reduce']) == ([4, 5, 4], [0, 3, 3])
  assert summary['teacher']['params'] == 828
  assert summary['student']['params'] == 401
  assert summary['compression']['keep'] == FOUND.keep
  assert summary['config']['compression']['keep'] == FOUND.keep
  assert summary['compression']['target'] == {
    'kind': 'params',
    'wanted': 0.485,
    'got': 401 / 828,
  }
  assert "0.4843 of the teacher's parameters, target 0.485\n" in shown


def test_only_the_same_question_has_the_same_answer(run):
  directory, _, _ = run

  def stored(**changes):
    return budget_search.stored(
      directory, tiny_run.values(**{**CHANGES, **changes})
    )

  assert stored() == FOUND
  assert stored(seed=3, compression__keep=(1.0, 1.0, 1.0)) == FOUND
  for changes in (
    {'compression__target': 'params:0.48'},
    {'compression__depth': (1, 1, 1)},
    {'inherit': 2},
    {'teacher__model': 'tiny_run:wider'},
  ):
    assert stored(**changes) is None
  assert budget_search.stored(directory / 'joint', tiny_run.values()) is None


def test_a_comparison_has_one_student(run, tmp_path, monkeypatch):
  values = tiny_run.values(**CHANGES)
  assert shared_teacher.find(tmp_path, values) == FOUND
  # That of an earlier call, were it another one.
  other = tmp_path / 'seed_4' / 'joint'
  other.mkdir(parents=True)
  earlier = dataclasses.replace(FOUND, keep=(1.0, 0.5, 0.5))
  workdir.begin(other, values, budget=dataclasses.asdict(earlier))
  monkeypatch.setattr(budget_search, 'find', never)
  assert shared_teacher.find(tmp_path, values) == earlier
  # Also that of a run whose stages are taken.
  taken = training._found(values, tmp_path / 'new', other, None)
  assert taken == earlier
  # And what a comparison gives to its runs.
  given = training._found(values, tmp_path / 'new', None, FOUND)
  assert given == FOUND
  exp = experiment.build(values, found=earlier)
  assert exp.student.widths == (4, 3, 4)


def test_a_report_is_of_the_runs_own_student():
  """SimKD's has a larger head than that which another objective chose."""
  teacher = {'params': 800, 'flops_per_example': 5e3, 'bytes': 3200}
  student = {'params': 700, 'flops_per_example': 4e3, 'bytes': 2800}
  report = FOUND.report_of(teacher, student)
  assert report == {'kind': 'params', 'wanted': 0.485, 'got': 0.875}
  flops = dataclasses.replace(FOUND, target='flops:0.5')
  assert flops.report_of(teacher, student)['got'] == 0.8
  timed = Found('latency_ms:3', (1.0, 0.5, 0.25), 2.9, (2.8, 3.1))
  assert timed.report_of(teacher, student) == timed.report()


def test_processes_have_the_first_ones_student(tmp_path, monkeypatch):
  """What is measured differs from process to process."""
  monkeypatch.setattr(processes, 'is_first', lambda: False)
  monkeypatch.setattr(budget_search, 'find', never)
  first = Found('latency_ms:3', (1.0, 0.5, 0.25), 2.9, (2.8, 3.1))
  monkeypatch.setattr(
    processes,
    'first_says',
    lambda text: {'null': json.dumps(dataclasses.asdict(first))}[text],
  )
  values = tiny_run.values(compression__target='latency_ms:3')
  assert training._found(values, tmp_path, None, None) == first


def test_a_settled_config_has_the_ratios_and_no_target():
  values = tiny_run.values(**CHANGES)
  settled = experiment.settled(values)
  assert settled['compression'] == {
    **values['compression'],
    'target': '',
    'keep': FOUND.keep,
  }
  assert experiment.settled(settled) is settled
  # Nor is there anything left to probe for.
  probing = tiny_run.values(**CHANGES, compression__probe=True)
  assert experiment.settled(probing) == settled


@pytest.fixture
def choice():
  exp = experiment.build(tiny_run.values(), tuple(jax.devices()[:1]))
  return networks.choice(exp.config, exp.local, None, exp.stages[-1].objective)


def test_few_students_are_measured_for_a_latency(choice, monkeypatch):
  measured = []

  def measure(network, image_shape, device):
    assert (image_shape, device) == ((8, 8, 1), 'here')
    size = choice.cost(network, 'params')
    measured.append(size)
    return timing.Latency(1 + size / 100, size / 100, 2 + size / 100)

  monkeypatch.setattr(timing, 'measure', measure)
  # The sizes are 99 to 890: see the students of other budgets.
  for wanted in 2.0, 5.1, 8.7:
    measured.clear()
    target = Target('latency_ms', wanted)
    found = budget_search.find(choice, target, 'here')
    assert len(measured) <= 8
    student = choice.network(choice.student(found.keep))
    size = choice.cost(student, 'params')
    assert found.got == 1 + size / 100
    assert found.quartiles == (size / 100, 2 + size / 100)
    # The best of those that were measured, and not slower than asked for.
    assert size == max(s for s in measured if 1 + s / 100 <= wanted)
    assert found.got > 0.9 * wanted
    assert budget_search.says(found.report()).startswith(f'{found.got:.3g} ms')
  for wanted, message in (
    (1.9, 'the smallest possible student takes 1.99 ms for one image on this'),
    (12, 'the largest possible student takes 9.9 ms for one image on this'),
  ):
    with pytest.raises(UserError, match=message):
      budget_search.find(choice, Target('latency_ms', wanted), 'here')


def test_a_network_is_timed(choice):
  network = choice.network(choice.student((1.0, 0.5, 0.5)))
  found = timing.measure(network, choice.image_shape, jax.devices()[0])
  assert 0 < found.low <= found.median <= found.high < 1000
  assert all(map(math.isfinite, found))


def test_a_probes_damages_decide(choice):
  """Where shallow channels do no harm, the deep ones are kept."""

  def damages(candidates):
    assert [len(keep) for keep in candidates] == [6, 8]
    shallow, deep = budget.default_damages(candidates)
    return [[0.0] * len(shallow), deep]

  target = Target('params', 0.6)
  plain = budget_search.find(choice, target, None)
  probed = budget_search.find(choice, target, None, damages)
  assert (plain.keep, probed.keep) == ((1, 1, 0.5), (1, 5 / 6, 5 / 8))


def test_the_student_is_counted_as_it_is_used():
  """With a head of its own, and casts of what its `reduce` multiplies."""
  values = tiny_run.values(
    objective='simkd',
    compute_dtype='bfloat16',
    teacher__model='tiny_run:larger',
    compression__target='flops:0.5',
  )
  exp = experiment.build(values, tuple(jax.devices()[:1]))
  sizes = [
    counting.total(counting.per_block(network, exp.image_shape))
    for network in (
      exp.predicting_network(exp.stages[-1]),
      exp.local.network(),
    )
  ]
  flops = [size['flops_per_example'] for size in sizes]
  assert exp.found.got == flops[0] / flops[1]
  assert 0.49 <= exp.found.got <= 0.5


@pytest.mark.parametrize(
  ('widths', 'target', 'message'),
  [
    # 4 of 5 channels, then all of 4.
    ((4, 5, 4), 'params:0.5', 'keep ratios have to grow with depth; '),
    ((4, 5, 4), 'latency_ms:1', 'keep ratios have to grow with depth; '),
    # All of 4 would read 8 of 6.
    ((4, 6, 4), 'params:0.5', 'no width in block 2, of 4 channels, '),
  ],
)
def test_a_rounding_that_leaves_no_choice_is_refused(
  widths, target, message, monkeypatch
):
  def model(**arguments):
    found = tiny_run.model(**arguments)
    return dataclasses.replace(found, widths=widths)

  monkeypatch.setattr(tiny_run, 'odd', model, raising=False)
  values = tiny_run.values(
    teacher__model='tiny_run:odd',
    compression__target=target,
    compression__width_multiple_of=4,
  )
  with pytest.raises(UserError, match=message):
    experiment.build(values)


class Picky(nn.Module):
  """As ShuffleNet's groups: some pairs of widths do not go together."""

  block: nn.Module

  def __call__(self, x, train):
    if x.shape[-1] > self.block.width:
      raise UserError('too many inputs')
    return self.block(x, train)


def test_a_family_may_refuse_widths(monkeypatch):
  """DenseNets do: each unit appends channels."""

  def model(**arguments):
    found = tiny_run.shallow(**arguments)

    def block(index, width, units):
      if width < 3:
        raise UserError('too narrow')
      return Picky(found.block(index, width, units))

    return dataclasses.replace(found, widths=(4, 32), block=block)

  monkeypatch.setattr(tiny_run, 'picky', model, raising=False)
  values = tiny_run.values(
    teacher__model='tiny_run:picky',
    compression__init='random',
    compression__target='params:0.57',
  )
  exp = experiment.build(values)
  choice = networks.choice(exp.config, exp.local, None, 'kd')
  (block,) = budget_costs.tabulate(choice, 'params').blocks
  assert (block.channels[0], block.channels[-1]) == (32, 3)
  costs = counting.per_block(exp.local_student.network(float, True), (8, 8, 1))
  size = exp.student.widths[1]
  assert costs[1]['params'] == block.own[block.channels.index(size)]
  with pytest.raises(
    UserError, match=r"target = 'params:0\.05': the smallest .* has 0\.0793 "
  ):
    budget_search.find(choice, Target('params', 0.05), None)
  # Nor is a teacher trained for a student that can't be.
  own = values['compression'] | {'target': '', 'keep': (1.0, 0.05)}
  scratch = {**values, 'order': 'scratch', 'compression': own}
  with pytest.raises(UserError, match=r'^scratch: too narrow'):
    experiment.build(scratch)


def test_a_cost_that_is_no_sum_over_blocks_is_refused(choice):
  """Here a block's units hang on another one's width."""

  def network(student):
    odd = student.widths[1] * student.widths[2] % 2
    units = (1, 1, 1 + odd)
    return choice.network(dataclasses.replace(student, units=units))

  entangled = dataclasses.replace(choice, network=network)
  with pytest.raises(
    UserError, match=r"^compression\.target = 'params:0.4': w"
  ):
    budget_search.find(entangled, Target('params', 0.4), None)


def test_a_target_is_checked_with_the_config():
  values = config.defaults()
  for text, message in (
    ('param:0.1', r"KIND one of .*; did you mean 'params'\?$"),
    ('params', 'must be KIND:NUMBER, e.g. params:0.1$'),
    ('flops:10%', 'must be above 0 and at most 1, a fraction of the teacher'),
    ('flops:nan', 'must be above 0 and at most 1'),
    ('bytes:1.01', 'must be above 0 and at most 1'),
    ('bytes:0', 'must be above 0 and at most 1'),
    ('latency_ms:-5', 'must be above 0, in milliseconds, e.g. latency_ms:5$'),
    ('latency_ms:inf', 'must be above 0, in milliseconds'),
  ):
    values['compression']['target'] = text
    with pytest.raises(UserError, match=message) as caught:
      config.check(values)
    assert str(caught.value).startswith(f'compression.target = {text!r}: ')
  for text in '', 'params:1', 'flops:.25', 'bytes:1e-3', 'latency_ms:12.5':
    values['compression']['target'] = text
    config.check(values)
