"""The figures of a finished run: `python -m cbkd_jax.evaluate --workdir=DIR`.

Reads the teacher and the saved student and runs both on the test split, every
example once. Batch size and number of devices don't change the result.
"""

import json

from absl import flags

from cbkd_jax import command
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(workdir=values.workdir)
  if values.batch_size is not None and values.batch_size < 1:
    raise UserError(f'--batch_size={values.batch_size}: must be at least 1')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, finished_run

  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(finished_run.read_config(directory))
  found = finished_run.evaluate(
    directory,
    batch_size=values.batch_size,
    data_dir=values.data_dir,
  )
  if values.json:
    print(json.dumps(found))
  else:
    finished_run.show(found, rich.console.Console())


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, "A finished run's workdir.")
  flags.DEFINE_integer('batch_size', None, "Default: the config's.")
  flags.DEFINE_string('data_dir', None, "Default: the config's data.dir.")
  flags.DEFINE_bool('json', False, 'Print one JSON object, no table.')
  command.run(main)
