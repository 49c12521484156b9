"""The method beside its controls: `python -m cbkd_jax.compare --config=FILE
--workdir=DIR --seeds=N [--orders=counterclockwise,joint,...]
[--objectives=kd,dkd,'ce + 500*at(power=2)',...]`.

One teacher per seed, the same number of training steps for every run. The
same command goes on where it was stopped; with more seeds, orders or objectives
it runs what is new. The tables hold what the command names.
"""

from absl import flags

from cbkd_jax import command, config
from cbkd_jax.errors import UserError
from cbkd_jax.stages import ORDERS

# What an objective is tried in where nothing else is asked for.
OBJECTIVE_ORDERS = ('counterclockwise', 'joint', 'joint_inherited')


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(config=values.config, workdir=values.workdir)

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, comparison, preemption
  from cbkd_jax.objectives import split

  plain = config.plain(values.config)
  config.check(plain)
  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(plain)
  objectives = split(values.objectives or '')
  if values.objectives is not None and not objectives:
    raise UserError('--objectives: must name at least one')
  orders = values.orders
  if orders is None:
    orders = list(OBJECTIVE_ORDERS if objectives else ORDERS)
  comparison.compare(
    plain,
    directory,
    seeds=values.seeds,
    orders=orders,
    objectives=objectives,
    console=rich.console.Console(),
    interrupted=preemption.listen(),
    command=command.line('cbkd_jax.compare'),
  )


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_string('workdir', None, 'Where the runs and tables go.')
  flags.DEFINE_integer('seeds', 3, 'How many seeds.')
  flags.DEFINE_list(
    'orders',
    None,
    'Which orders; default all, with --objectives those with blocks from the '
    f'teacher and joint: {",".join(OBJECTIVE_ORDERS)}.',
  )
  flags.DEFINE_string(
    'objectives', None, "Objectives in place of the config's: kd,dkd,at."
  )
  command.run(main)
