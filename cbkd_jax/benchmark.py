"""How fast a config trains: `python -m cbkd_jax.benchmark --config=FILE
[--devices=1,2,4] [--spmd=pmap,shard_map] [--json=FILE] [--plot=FILE]
[--profile=DIR]`.

Each stage, the thaw, joint distillation and plain training, on random images
of the config's shape; no data set is needed. Beside each the naive step, and
the step with a cache, measured in turn with it.
"""

import json
from pathlib import Path

from absl import flags

from cbkd_jax import command, config
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(config=values.config)
  for flag, path, endings in (
    ('json', values.json, ('.json',)),
    ('plot', values.plot, ('.png', '.svg', '.pdf')),
  ):
    command.check_new_file(flag, path, endings)
  if values.profile and Path(values.profile).is_file():
    raise UserError(f'--profile: {values.profile}: is not a directory')
  counts = command.numbers('devices', values.devices or ())

  # Seconds to import, which neither help nor a wrong flag should cost.
  import jax
  import rich.console

  from cbkd_jax import benchmarking

  plain = config.plain(values.config)
  config.check(plain)
  # Compile times are measured too.
  command.set_up_devices({**plain, 'compilation_cache': 'off'})
  console = rich.console.Console()
  found = benchmarking.benchmark(
    plain,
    devices=counts or (len(jax.local_devices()),),
    spmd=values.spmd or (plain['spmd'],),
    names=values.names,
    effort=benchmarking.Effort(values.rounds, values.seconds, values.examples),
    profile=Path(values.profile) if values.profile else None,
    console=console,
  )
  benchmarking.show(found, console)
  if values.json:
    Path(values.json).write_text(json.dumps(found, indent=2) + '\n')
  if values.plot:
    from cbkd_jax import roofline

    roofline.draw(found, Path(values.plot))


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_list('devices', None, 'Numbers of devices; default all.')
  flags.DEFINE_list('spmd', None, 'pmap, shard_map; default the config.')
  flags.DEFINE_list('names', None, 'Rows to measure; default all.')
  flags.DEFINE_integer('rounds', 50, 'Calls of each program, at most.', 1)
  flags.DEFINE_float('seconds', 20.0, 'Time for one row, roughly.', 0.0)
  flags.DEFINE_integer('examples', 2048, 'Random images.', 1)
  flags.DEFINE_string('json', None, 'Write the rows to this file.')
  flags.DEFINE_string('plot', None, 'Draw the roofline to this .png or .svg.')
  flags.DEFINE_string('profile', None, 'Write a trace to this directory.')
  command.run(main)
