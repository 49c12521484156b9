"""Methods that prepare, or predict, in plans that mix them with others."""

import itertools
import json

import method_runs
import numpy as np
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import blocks, checkpoints, experiment, finished_run, student
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import simkd

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Two steps in each pre-stage, and two left.
STEPS = method_runs.STEPS | {'stage__steps': 4, 'thaw__steps': 4}
MIXED = 'simkd() + ft(pre_fraction=0.5)'


# One stage and the thaw; or two stages: half as much again to compile.
NETWORKS = {
  'unpooled': {
    'teacher__model': 'tiny_run:unpooled',
    'compression__keep': (1.0, 0.5),
  },
  'model': {},
}


@pytest.fixture(
  scope='module',
  params=['unpooled', pytest.param('model', marks=pytest.mark.thorough)],
)
def changes(request, tmp_path_factory, quick_compilation):
  """Of the config: SimKD beside FT, and a teacher's checkpoint."""
  directory = tmp_path_factory.mktemp('teacher') / 'checkpoint'
  method_runs.write_teacher(directory, getattr(tiny_run, request.param))
  teacher = {'teacher__checkpoint': str(directory)}
  return STEPS | NETWORKS[request.param] | teacher | {'objective': MIXED}


@pytest.fixture(scope='module')
def mixed(changes, tmp_path_factory):
  """Such a run, and its phases; resumed, it is the same."""
  directory = tmp_path_factory.mktemp('mixed')
  # In stage_1_pre, in stage_1, and in thaw_pre.
  interrupted_at = [3, 5, 6 if 'compression__keep' in changes else 12]
  seen = method_runs.check(directory, changes, ('simkd', 'ft'), interrupted_at)
  return directory / 'whole', seen


def _stages(seen):
  """The thaw is the last of them."""
  return [*(f'stage_{i}' for i in range(1, len(seen) // 2)), 'thaw']


def test_what_goes_on_goes_past_the_pre_stages(mixed):
  _, seen = mixed
  stages = _stages(seen)
  assert list(seen) == [f'{s}{end}' for s in stages for end in ('_pre', '')]
  for before, after in itertools.pairwise(stages):
    end, start = seen[before].after, seen[after].before
    assert tiny.same(end.params[-1]['simkd'], start.params[-1]['simkd'])
    assert tiny.same(
      end.objective_state['simkd'], start.objective_state['simkd']
    )


def test_the_paraphraser_trains_first_and_then_is_frozen(mixed):
  _, seen = mixed
  stages = _stages(seen)
  cut = f'cut_{len(stages) - 1}'  # that of the deepest block
  start, end = (
    state.params[-1]['ft'][cut] for state in seen['stage_1_pre'][1:]
  )
  assert not tiny.same(start['paraphraser'], end['paraphraser'])
  for state in seen['stage_1'][1:]:
    frozen = state.objective_state['ft'][cut]['paraphraser']['params']
    assert tiny.same(frozen, end['paraphraser'])
  again = seen[f'{stages[1]}_pre'].before.params[-1]['ft'][cut]
  assert tiny.same(again['paraphraser'], end['paraphraser'])


def test_the_saved_student_predicts_with_projector_and_teachers_head(mixed):
  directory, seen = mixed
  summary = json.loads((directory / 'summary.json').read_text())
  network, variables, _ = student.read(directory / 'student')
  assert set(variables.params[-1]) == {'projector', 'head'}
  projector = blocks.count_params(variables.params[-1]['projector'])
  # The deepest map has 4 channels, the teacher's 8, half of them inside;
  # scales and biases of three normalisations.
  assert projector == 4 * 4 + 9 * 4 * 4 + 4 * 8 + 2 * (4 + 4 + 8)
  teacher = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(directory)),
    blocks.shapes(seen['thaw'].spec.teacher, (8, 8, 1)),
  )
  assert tiny.same(variables.params[-1]['head'], teacher.params[-1])
  count = blocks.count_params(variables.params)
  assert summary['student']['params'] == count
  # Its own head, which the objective made useless, is gone.
  assert blocks.count_params(variables.params[:-1]) + projector + 90 == count
  found = finished_run.evaluate(directory, batch_size=16)
  for name in 'accuracy', 'cross_entropy', 'agreement', 'kl_to_teacher':
    assert found['student'][name] == pytest.approx(
      summary['student'][name], rel=1e-4, abs=1e-6
    )
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  logits = cbkd_jax.load_student(directory)(images)
  x = normalise(images, student.read(directory / 'student')[2])
  outputs, _ = blocks.run(network, variables, x, stop=len(network.blocks))
  own = variables.params[-1], variables.batch_stats[-1]
  projected = simkd.Projector(8, 2).apply(
    {
      'params': own[0]['projector'],
      'batch_stats': own[1]['projector'],
    },
    outputs[-1].output,
    train=False,
  )
  layer = own[0]['head']['classifier']
  expected = projected.mean((1, 2)) @ layer['kernel'] + layer['bias'][None]
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_new_thaw_takes_over_the_method_too(mixed, changes, tmp_path):
  directory, seen = mixed
  # The stages alone are numbered, and one comes with its pre-stage.
  number = str(len(_stages(seen)))
  with method_runs.recorded() as taken:
    tiny_run.run(
      tmp_path / 'run', changes, from_workdir=directory, from_stage=number
    )
  assert list(taken) == ['thaw_pre', 'thaw']
  # With the same config it is the same thaw, and nothing is compiled anew.
  for phase, again in taken.items():
    assert tiny.same(again, seen[phase]), phase


@pytest.mark.parametrize(
  ('objective', 'missing'),
  [
    (MIXED.replace('simkd()', 'simkd(factor=4)'), 'objective/params'),
    (MIXED.replace('ft(', 'ft(k=0.25, '), 'objective/params'),
  ],
)
def test_stages_of_another_method_are_refused(
  mixed, changes, tmp_path, objective, missing
):
  directory, _ = mixed
  changes = {**changes, 'objective': objective}
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
