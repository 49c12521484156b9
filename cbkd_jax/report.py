"""What a run came to: `python -m cbkd_jax.report --workdir=DIR[,DIR2,...]
[--data_dir=DIR] [--examples=N] [--noanalysis] [--out=DIR]`.

Writes report.html, one file that loads nothing, with figures; each figure as
PNG and its numbers as CSV in report/; and of a single finished run
MODEL_CARD.md. Of an unfinished run it shows what is there. With several
workdirs, or one of `compare` or `pareto`: the runs side by side.
"""

from absl import flags

from cbkd_jax import command
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(workdir=values.workdir)
  if not any(values.workdir):
    raise UserError('--workdir: must name at least one directory')
  if values.examples is not None and values.examples < 1:
    raise UserError(f'--examples={values.examples}: must be at least 1')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, config
  from cbkd_jax.reporting import building

  directories = [buckets.path(d, '--workdir') for d in values.workdir if d]
  out = buckets.path(values.out, '--out') if values.out else None
  command.set_up_devices(config.defaults())
  console = rich.console.Console()
  for path in building.build(
    directories,
    out=out,
    analysed=values.analysis,
    data_dir=values.data_dir,
    examples=values.examples,
    console=console,
  ):
    console.print(f'{path}', highlight=False, markup=False, soft_wrap=True)


if __name__ == '__main__':
  flags.DEFINE_list('workdir', None, 'One or more workdirs, with commas.')
  flags.DEFINE_string('data_dir', None, "Default: each config's data.dir.")
  flags.DEFINE_integer(
    'examples', None, 'Run on at most so many test images; default all.'
  )
  flags.DEFINE_bool(
    'analysis', True, 'Run teacher and student on the test split.'
  )
  flags.DEFINE_string(
    'out', None, 'Where it goes; default the (first) workdir.'
  )
  command.run(main)
