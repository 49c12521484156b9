"""Methods that prepare, or predict, in plans that mix them with others."""

import json

import jax
import pytest
import tiny
import tiny_run

from cbkd_jax import experiment, phases
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

STEPS = {'stage__steps': 2, 'thaw__steps': 2}


@pytest.fixture(scope='module')
def teacher(tmp_path_factory, quick_compilation):
  directory = tmp_path_factory.mktemp('teacher') / 'run'
  tiny_run.run(
    directory, {'order': 'scratch', 'thaw__steps': 1, 'stage__steps': 1}
  )
  return directory


@pytest.fixture(scope='module')
def mixed(teacher, tmp_path_factory):
  """A run of SimKD beside FT, and its states at each phase's ends."""
  directory = tmp_path_factory.mktemp('mixed') / 'run'
  seen = {}
  real = phases.fit

  def fit(name, spec, state, *arguments, **keywords):
    before = jax.device_get(state)
    after, last = real(name, spec, state, *arguments, **keywords)
    seen[name] = before, jax.device_get(after)
    return after, last

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(phases, 'fit', fit)
    tiny_run.run(
      directory,
      STEPS
      | {
        'objective': 'simkd() + ft()',
        'teacher__checkpoint': str(teacher),
      },
    )
  return directory, seen


def _of(tree):
  """The objective's part of a state's params, or its state itself."""
  return tree[-1] if isinstance(tree, tuple) else tree


def test_what_goes_on_goes_past_the_pre_stages(mixed):
  _, seen = mixed
  assert list(seen) == [
    *('stage_1_pre', 'stage_1', 'stage_2_pre', 'stage_2'),
    *('thaw_pre', 'thaw'),
  ]
  for before, after in ('stage_1', 'stage_2'), ('stage_2', 'thaw'):
    end, start = seen[before][1], seen[after][0]
    assert tiny.same(end.params[-1]['simkd'], start.params[-1]['simkd'])
    assert tiny.same(
      end.objective_state['simkd'], start.objective_state['simkd']
    )


def test_the_paraphraser_trains_first_and_then_is_frozen(mixed):
  _, seen = mixed
  cut = 'cut_2'
  start, end = (state.params[-1]['ft'][cut] for state in seen['stage_1_pre'])
  assert not tiny.same(start['paraphraser'], end['paraphraser'])
  for state in seen['stage_1']:
    frozen = state.objective_state['ft'][cut]['paraphraser']['params']
    assert tiny.same(frozen, end['paraphraser'])
  again = seen['stage_2_pre'][0].params[-1]['ft'][cut]
  assert tiny.same(again['paraphraser'], end['paraphraser'])


def test_a_new_thaw_takes_over_the_method_too(mixed, teacher, tmp_path):
  directory, seen = mixed
  changes = STEPS | {
    'objective': 'simkd() + ft()',
    'teacher__checkpoint': str(teacher),
    'thaw__learning_rate': 0.02,
  }
  taken = {}
  real = phases.fit

  def fit(name, spec, state, *arguments, **keywords):
    taken[name] = jax.device_get(state)
    return real(name, spec, state, *arguments, **keywords)

  # 3: the stages alone are numbered, and one comes with its pre-stage.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(phases, 'fit', fit)
    tiny_run.run(
      tmp_path / 'run', changes, from_workdir=directory, from_stage='3'
    )
  assert list(taken) == ['thaw_pre', 'thaw']
  end = seen['stage_2'][1]
  assert tiny.same(end.params[-1]['simkd'], taken['thaw'].params[-1]['simkd'])


@pytest.mark.parametrize(
  ('objective', 'missing'),
  [
    ('simkd(factor=4) + ft()', 'objective/params'),
    ('simkd() + ft(k=0.25)', 'objective/params'),
  ],
)
def test_stages_of_another_method_are_refused(
  mixed, teacher, tmp_path, objective, missing
):
  directory, _ = mixed
  changes = STEPS | {
    'objective': objective,
    'teacher__checkpoint': str(teacher),
  }
  with pytest.raises(UserError, match=f'does not fit: .*{missing}'):
    tiny_run.run(
      tmp_path / 'run', changes, from_workdir=directory, from_stage='thaw'
    )
  assert not (tmp_path / 'run').exists()


def test_pre_stages_carry_no_warning(mixed):
  directory, _ = mixed
  summary = json.loads((directory / 'summary.json').read_text())
  for stage in summary['stages']:
    if stage['name'].endswith('_pre'):
      assert stage['warning'] is None
  assert any(stage['warning'] for stage in summary['stages'])


def plan(**changes):
  exp = experiment.build(tiny_run.values(**STEPS | changes))
  return [(stage.name, str(exp.objective(stage))) for stage in exp.stages]


def test_the_thaw_prepares_variables_without_blocks():
  phases = plan(objective='kd', thaw__objective='ce + 9*ab() + 3*ft()')
  assert [name for name, _ in phases] == [
    *('stage_1', 'stage_2'),
    *('thaw_pre', 'thaw'),
  ]
  # Unweighted, and of FT alone.
  assert phases[2][1].startswith('ft(')
  assert 'ab' not in phases[2][1]


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'objective': 'kd', 'stage_overrides__stage_1__objective': 'simkd'},
      'stage_2: its objective lacks simkd, by which the stage before predicts',
    ),
    ({'objective': '1*ab()'}, 'stage_1: ab.* is the objective of a pre-stage'),
    (
      {'objective': 'kd', 'thaw__objective': '1*ab()'},
      'thaw: ab.* is the objective of a pre-stage',
    ),
    (
      {'objective': 'ab', 'stage__steps': 1},
      'stage_1: 1 step is too few for the pre-stage',
    ),
  ],
)
def test_plans_that_can_not_work(changes, message):
  with pytest.raises(UserError, match=message):
    plan(**changes)
  # SimKD in the thaw alone can.
  assert plan(objective='kd', thaw__objective='simkd')[-1][0] == 'thaw'
