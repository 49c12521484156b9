"""What objectives cost: `python -m cbkd_jax.objective_costs --config=FILE
[--objectives=kd,at,...] [--phases=stage_1,thaw]`.

XLA's count of floating-point operations of one training step, per example, on
one device; no data and no stopwatch needed. Steps of a pre-stage are not
among them: `ab`, whose loss is in its pre-stage, then costs what `ce` does.
"""

from absl import flags

from cbkd_jax import command, config
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(config=values.config)

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import experiment, step_costs
  from cbkd_jax.objectives import METHODS, split

  plain = config.plain(values.config)
  config.check(plain)
  command.set_up_devices(plain)
  objectives = sorted(METHODS)
  if values.objectives is not None:
    objectives = split(values.objectives)
  if not objectives:
    raise UserError('--objectives: must name at least one')
  # The same student with every objective.
  plain = experiment.settled(plain)
  step_costs.show(plain, objectives, values.phases, rich.console.Console())


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_string('objectives', None, 'Which; default all.')
  flags.DEFINE_list('phases', ['stage_1'], 'Phases of the plan.')
  command.run(main)
