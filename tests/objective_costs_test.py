"""`cbkd_jax.objective_costs` counts what a step costs."""

import cli
import pytest
import tiny_run

from cbkd_jax import step_costs


def test_more_work_costs_more(quick_compilation):
  rows = step_costs.costs(
    tiny_run.values(), ['ce', 'kd', 'ce + mgd()'], ['stage_2']
  )
  assert [row['objective'] for row in rows] == ['ce', 'kd', 'ce + mgd()']
  labels, kd, mgd = (row['stage_2'] for row in rows)
  # The teacher's blocks behind the shared one: 3x3 convolutions 4 -> 6 on 4x4
  # pixels and 6 -> 8 on 2x2, borders counted by XLA only where they are.
  teacher = 2 * 9 * (16 * 4 * 6 + 4 * 6 * 8)
  assert 0.4 * teacher < kd - labels < 1.5 * teacher
  # MGD's generator: two 3x3 convolutions of 8 channels on 2x2, three times
  # for what is trained, twice for the activations alone.
  assert mgd - kd > 2 * 9 * 4 * 8 * 8 * 0.4


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--objectives=kd,dk'], "method 'dk' is not known"),
    (['--objectives=,'], '--objectives: must name at least one'),
    (['--phases=stage_9'], "'stage_9' is not in the plan; allowed: stage_1"),
    (['--config.batch_size=0'], 'batch_size = 0: must be'),
  ],
)
def test_wrong_usage_is_one_line(arguments, message):
  ended = cli.call(
    'cbkd_jax.objective_costs', f'--config={tiny_run.__file__}', *arguments
  )
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert message in ended.err
