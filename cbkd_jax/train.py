"""The whole method: `python -m cbkd_jax.train --config=FILE --workdir=DIR`.

Trains the teacher, distils it block by block, thaws and evaluates. The same
command in the same workdir goes on where it was stopped.
"""

from absl import flags

from cbkd_jax import command, config
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  flags_ = flags.FLAGS
  if not flags_.list:
    command.require(config=flags_.config)
    if not flags_.dry_run:
      command.require(workdir=flags_.workdir)
      if flags_.measure_memory:
        raise UserError('--measure_memory goes with --dry_run')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import (
    buckets,
    data,
    experiment,
    listing,
    memory_plan,
    preemption,
    processes,
    summary,
    training,
  )

  console = rich.console.Console()
  if flags_.list:
    listing.show(console)
    return
  values = config.plain(flags_.config)
  config.check(values)
  command.set_up_devices(values)
  if flags_.dry_run:
    data.check_name(values['data']['name'], values['data']['dir'])
    planned = experiment.build(values)
    summary.show_plan(planned, console)
    if flags_.measure_memory:
      memory_plan.show(planned, console)
    return
  command.join_processes()
  if not processes.is_first():
    console.quiet = True
  interrupted = preemption.listen()
  directory, source = processes.together(
    lambda: (
      buckets.path(flags_.workdir, '--workdir'),
      buckets.path(flags_.from_workdir, '--from_workdir')
      if flags_.from_workdir
      else None,
    )
  )
  training.train_and_evaluate(
    values,
    directory,
    console=console,
    interrupted=interrupted,
    from_workdir=source,
    from_stage=flags_.from_stage,
    command=command.line('cbkd_jax.train'),
  )


if __name__ == '__main__':
  command.define_config()
  command.define_processes()
  flags.DEFINE_string('workdir', None, 'Where the run is kept.')
  flags.DEFINE_bool('list', False, 'Print everything that has a name.')
  flags.DEFINE_bool('dry_run', False, 'Print the plan; needs no data.')
  flags.DEFINE_bool(
    'measure_memory',
    False,
    "With --dry_run: compile the stages' steps for the devices that there are, "
    'and print what memory XLA gives them.',
  )
  flags.DEFINE_string(
    'from_workdir', None, 'Take finished stages from this run.'
  )
  flags.DEFINE_string(
    'from_stage', None, 'The first stage to run anew: its name or number.'
  )
  command.run(main)
