"""Accuracy against size: `python -m cbkd_jax.pareto --config=FILE
--workdir=DIR --targets=params:0.5,params:0.2,params:0.1 [--seeds=N]`.

One run per target and seed, one teacher per seed. The same command goes on
where it was stopped; with more targets or seeds it runs what is new. Ends with
a table, pareto.json and the plot pareto.png.
"""

from absl import flags

from cbkd_jax import command, config


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(
    config=values.config, workdir=values.workdir, targets=values.targets
  )

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, preemption, sweep

  plain = config.plain(values.config)
  config.check(plain | {'compression': plain['compression'] | {'probe': False}})
  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(plain)
  sweep.sweep(
    plain,
    directory,
    targets=[target.strip() for target in values.targets],
    seeds=values.seeds,
    console=rich.console.Console(),
    interrupted=preemption.listen(),
    command=command.line('cbkd_jax.pareto'),
  )


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_string('workdir', None, 'Where runs, table and plot go.')
  flags.DEFINE_list(
    'targets',
    None,
    'What students may cost, each like compression.target: params:0.5,'
    'params:0.2,flops:0.1.',
  )
  flags.DEFINE_integer('seeds', 1, 'How many seeds.')
  command.run(main)
