"""What to say of a data set: `python -m cbkd_jax.inspect_data --config=FILE`.

Takes the config and the overrides of a run, reads every image, and prints what
is there and which fields of `config.data` the run must be given.
"""

from absl import flags

from cbkd_jax import command, config


def main() -> None:
  """Reads the flags and does what they say."""
  command.require(config=flags.FLAGS.config)

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax.data import measured

  values = config.plain(flags.FLAGS.config)
  config.check(values)
  found = measured.measure(values['data'])
  measured.show(found, rich.console.Console())


if __name__ == '__main__':
  command.define_config()
  command.run(main)
