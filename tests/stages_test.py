"""Plans against hand-written ones."""

import pytest

from cbkd_jax import stages
from cbkd_jax.errors import UserError

PHASE = {
  'epochs': 2.0,
  'steps': None,
  'optimizer': 'sgd',
  'learning_rate': 0.1,
  'schedule': 'cosine',
  'warmup': 0.0,
  'milestones': [0.5],
  'decay': 0.1,
  'momentum': 0.9,
  'nesterov': True,
  'weight_decay': 5e-4,
  'clip_norm': 1.0,
}


def make(order='counterclockwise', blocks=3, inherit=1, **changed):
  arguments = {
    'train_size': 1000,
    'batch_size': 100,
    'objective': 'kd',
    'stage': PHASE,
    'stage_overrides': {},
    'thaw': PHASE | {'epochs': 5.0, 'objective': None, 'quantize': ''},
  }
  return stages.plan(
    order=order, blocks=blocks, inherit=inherit, **arguments | changed
  )


def outline(plan):
  """(name, student blocks, trained parts, shared, inherited, folded)."""

  def digits(flags):
    return ''.join(str(int(f)) for f in flags)

  return [
    (
      s.name,
      digits(s.student),
      digits(s.trained),
      s.shared,
      s.inherited,
      s.folded,
    )
    for s in plan
  ]


@pytest.mark.parametrize(
  ('order', 'blocks', 'inherit', 'expected'),
  [
    # Deepest first; the head trains with the deepest block alone.
    (
      'counterclockwise',
      4,
      1,
      [
        ('stage_1', '0001', '00011', 3, 1, False),
        ('stage_2', '0011', '00100', 2, 1, False),
        ('stage_3', '0111', '01000', 1, 1, False),
        ('thaw', '0111', '11111', 0, 1, True),
      ],
    ),
    (
      'counterclockwise',
      4,
      2,
      [
        ('stage_1', '0001', '00011', 3, 2, False),
        ('stage_2', '0011', '00100', 2, 2, False),
        ('thaw', '0011', '11111', 0, 2, True),
      ],
    ),
    (
      'counterclockwise',
      2,
      1,
      [
        ('stage_1', '01', '011', 1, 1, False),
        ('thaw', '01', '111', 0, 1, True),
      ],
    ),
    # Shallowest first. In stage_2 the student's block 1 ends the prefix.
    (
      'clockwise',
      4,
      1,
      [
        ('stage_1', '0100', '01000', 1, 1, False),
        ('stage_2', '0110', '00100', 1, 1, False),
        ('stage_3', '0111', '00011', 1, 1, False),
        ('thaw', '0111', '11111', 0, 1, True),
      ],
    ),
    ('joint', 3, 1, [('joint', '011', '1111', 0, 0, True)]),
    ('joint_inherited', 3, 2, [('joint_inherited', '001', '1111', 0, 2, True)]),
    ('scratch', 3, 1, [('scratch', '011', '1111', 0, 0, True)]),
  ],
)
def test_plans_by_hand(order, blocks, inherit, expected):
  plan = make(order, blocks, inherit)
  assert outline(plan) == expected


def test_trained_blocks_leave_out_the_head():
  assert [s.trained_blocks for s in make()] == [(2,), (1,), (0, 1, 2)]


def test_all_orders_take_as_many_steps():
  overrides = {'stage_1': {'epochs': 7.0}, 'stage_2': {'steps': 3}}
  plans = {
    order: make(order, stage_overrides=overrides) for order in stages.ORDERS
  }
  assert {
    order: [s.training.steps for s in plan] for order, plan in plans.items()
  } == {
    'counterclockwise': [70, 3, 50],
    'clockwise': [70, 3, 50],
    'joint': [123],
    'joint_inherited': [123],
    'scratch': [123],
  }
  # Otherwise the controls are trained as the thaw is.
  assert plans['joint'][0].training.learning_rate == 0.1


@pytest.mark.parametrize(
  ('fields', 'steps'),
  [
    ({'epochs': 2.0}, 20),
    ({'epochs': 0.5}, 5),
    ({'epochs': 0.26}, 3),  # 2.6
    ({'epochs': 1e-9}, 1),  # never none
    ({'epochs': 2.0, 'steps': 7}, 7),  # steps win
  ],
)
def test_steps_from_epochs(fields, steps):
  found = stages.training(PHASE | fields, train_size=1000, batch_size=100)
  assert found == stages.Training(
    steps=steps, milestones=(0.5,), weight_decay=5e-4, clip_norm=1.0
  )


def test_steps_of_an_epoch_that_batches_do_not_divide():
  assert stages.training(PHASE | {'epochs': 12.0}, 1437, 64).steps == 269


def test_objectives():
  def objectives(**changed):
    return [s.objective for s in make(**changed)]

  assert objectives() == ['kd', 'kd', 'kd']
  thaw = PHASE | {'objective': 'ce', 'quantize': ''}
  assert objectives(thaw=thaw) == ['kd', 'kd', 'ce']
  override = {'stage_2': {'objective': 'ce'}}
  assert objectives(stage_overrides=override) == ['kd', 'ce', 'kd']
  assert objectives(order='joint', thaw=thaw) == ['ce']
  assert objectives(order='joint') == ['kd']
  # No teacher, whatever the objective says.
  assert objectives(order='scratch') == ['ce']


def test_overrides_change_one_stage_and_their_none_nothing():
  plain = make()
  override = dict.fromkeys([*PHASE, 'objective'])
  override |= {
    'learning_rate': 0.5,
    'milestones': [0.25, 0.75],
    'momentum': 0.0,
  }
  changed = make(
    stage_overrides={'stage_2': override, 'stage_8': dict.fromkeys(PHASE)}
  )
  assert (changed[0], changed[2]) == (plain[0], plain[2])
  training = changed[1].training
  assert training.learning_rate == 0.5
  assert training.milestones == (0.25, 0.75)
  assert training.momentum == 0.0
  assert training.steps == plain[1].training.steps == 20


def test_a_plan_is_hashable_and_inputs_stay_as_they_are():
  fields = {'objective': None, 'quantize': 'int8'}
  stage, thaw = dict(PHASE), PHASE | fields
  hash(make(stage=stage, thaw=thaw))
  assert stage == PHASE
  assert thaw == PHASE | fields


@pytest.mark.parametrize(
  ('changed', 'message'),
  [
    (
      {'order': 'counter_clockwise'},
      "order = 'counter_clockwise' is not known; did you mean "
      "'counterclockwise'\\?",
    ),
    ({'order': ''}, "order = '' is not known; allowed: counterclockwise, "),
    ({'inherit': 0}, 'inherit = 0: must be at least 1 and below .* 3'),
    ({'inherit': -1}, 'inherit = -1'),
    ({'inherit': 3}, 'inherit = 3'),
    (
      {'stage_overrides': {'stage_3': {'epochs': 1.0}}},
      'stage_overrides.stage_3: there is no such stage; this plan has '
      'stage_1 to stage_2',
    ),
    (
      {'order': 'joint', 'stage_overrides': {'stage_3': {'epochs': 1.0}}},
      'stage_3: there is no such stage',
    ),
  ],
)
def test_errors(changed, message):
  with pytest.raises(UserError, match=message) as caught:
    make(**changed)
  assert '\n' not in str(caught.value)


def pre_stages(share, blocks, **arguments):
  shares = {'blocks' if blocks else 'variables': share}
  return stages.with_pre_stages(make(**arguments), lambda objective: shares)


def steps(plan):
  return [(s.name, s.training.steps) for s in plan]


def test_a_pre_stage_of_blocks_takes_its_steps_from_the_stage():
  plan = pre_stages(0.25, True)
  assert steps(plan) == [
    *(('stage_1_pre', 5), ('stage_1', 15)),
    *(('stage_2_pre', 5), ('stage_2', 15)),
    ('thaw', 50),
  ]
  # The head does not train before its block.
  assert outline(plan)[0] == ('stage_1_pre', '001', '0010', 2, 1, False)
  assert outline(plan)[1][1:] == outline(make())[0][1:]
  assert [s.prepared for s in plan] == [False, True, False, True, False]
  assert plan[0].prepares == make()[0]


def test_a_pre_stage_of_variables_trains_nothing_else():
  plan = pre_stages(0.125, False)
  assert steps(plan)[-2:] == [('thaw_pre', 6), ('thaw', 44)]
  assert outline(plan)[0] == ('stage_1_pre', '001', '0000', 2, 1, False)
  assert outline(plan)[-2] == ('thaw_pre', '011', '0000', 1, 1, True)
  # Of the plain control, nothing is the teacher's.
  (pre, _) = pre_stages(0.5, False, order='joint')
  assert (pre.name, pre.shared) == ('joint_pre', 0)


def test_before_the_thaw_variables_alone_are_prepared():
  shares = {'blocks': 0.5, 'variables': 0.1}
  plan = stages.with_pre_stages(make(), lambda objective: shares)
  assert steps(plan)[:2] == [('stage_1_pre', 10), ('stage_1', 10)]
  assert outline(plan)[0][2] == '0010'
  assert steps(plan)[-2:] == [('thaw_pre', 5), ('thaw', 45)]
  assert outline(plan)[-2][2] == '0000'


def test_controls_have_pre_stages_of_blocks_too():
  plan = pre_stages(0.5, True, order='joint_inherited')
  assert [s.name for s in plan] == ['joint_inherited_pre', 'joint_inherited']


def test_a_pre_stage_has_a_step_and_leaves_one():
  stage = PHASE | {'steps': 2}
  assert steps(pre_stages(0.01, True, stage=stage))[:2] == [
    ('stage_1_pre', 1),
    ('stage_1', 1),
  ]
  assert steps(pre_stages(0.99, True, stage=stage))[:2] == [
    ('stage_1_pre', 1),
    ('stage_1', 1),
  ]
  with pytest.raises(UserError, match='stage_1: 1 step is too few'):
    pre_stages(0.5, True, stage=PHASE | {'steps': 1})
