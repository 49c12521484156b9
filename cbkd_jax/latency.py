"""How long the student takes, and the teacher: `python -m cbkd_jax.latency
--workdir=DIR [--batch_sizes=1,64] [--runtimes=jax,onnxruntime]
[--files=FILE.onnx,...] [--json=FILE]`.

Both networks of a finished run, in eval mode and folded, on this machine: in
JAX, on the first device, and in ONNX Runtime. They run in turns. Weights and
the images are already where they are needed; decoding is not measured.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cbkd_jax import command
from cbkd_jax.errors import UserError

_RUNTIMES = ('jax', 'onnxruntime')


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(workdir=values.workdir)
  command.check_new_file('json', values.json, ('.json',))
  batch_sizes = command.numbers('batch_sizes', values.batch_sizes)
  if min(batch_sizes, default=0) < 1:
    given = ','.join(values.batch_sizes)
    raise UserError(f'--batch_sizes={given}: must be numbers of at least 1')
  names = values.runtimes or _RUNTIMES
  _check(names, values.files or ())

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, finished_run, forward_times, runtimes

  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(finished_run.read_config(directory))
  console = rich.console.Console()
  rows = []
  with tempfile.TemporaryDirectory() as scratch:
    found, left_out = runtimes.of_run(
      directory,
      tuple(dict.fromkeys(names)),
      [Path(name) for name in values.files or ()],
      Path(scratch),
      # What was asked for has to be there.
      lenient=not (values.runtimes or values.files),
    )
    for runtime in found:
      measured = forward_times.measure(
        runtime,
        tuple(dict.fromkeys(batch_sizes)),
        forward_times.Effort(values.rounds, values.seconds),
      )
      forward_times.show(runtime.about, measured, console)
      rows += measured
  for name, reason in left_out.items():
    console.print(
      f'{name} is left out: {reason}',
      markup=False,
      highlight=False,
      soft_wrap=True,
    )
  if values.json:
    result = {
      'workdir': values.workdir,
      'versions': forward_times.versions(),
      'runtimes': {runtime.name: runtime.about for runtime in found},
      'left_out': left_out,
      'rows': rows,
    }
    Path(values.json).write_text(json.dumps(result, indent=2) + '\n')


def _check(names: Sequence[str], files: Sequence[str]) -> None:
  """Refuses runtimes and files that there are not."""
  for name in names:
    if name not in _RUNTIMES:
      raise UserError(
        f'--runtimes: {name!r}: must be one of {", ".join(_RUNTIMES)}'
      )
  for name in files:
    if not name.endswith('.onnx') or not Path(name).is_file():
      raise UserError(f'--files: {name}: must be an ONNX file, FILE.onnx')
  if files and 'onnxruntime' not in names:
    raise UserError('--files: they run in onnxruntime; see --runtimes')


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, "A finished run's workdir.")
  flags.DEFINE_list('batch_sizes', ['1', '64'], 'Images of a batch.')
  flags.DEFINE_list('runtimes', None, 'jax, onnxruntime; default both.')
  flags.DEFINE_list('files', None, 'More ONNX files of these images.')
  flags.DEFINE_integer('rounds', 200, 'Runs of each network, at most.', 1)
  flags.DEFINE_float(
    'seconds', 5.0, 'Time for one table section, roughly.', 0.0
  )
  flags.DEFINE_string('json', None, 'Write the rows to this file.')
  command.run(main)
