"""How long the student takes, and the teacher: `python -m cbkd_jax.latency
--workdir=DIR [--batch_sizes=1,64] [--runtimes=jax,onnxruntime]
[--files=FILE.onnx,...] [--json=FILE]`.

Both networks of a finished run, in eval mode and folded, on this machine: in
JAX, on the first device, and in ONNX Runtime. They run in turns. Weights and
the images are already where they are needed; decoding is not measured.
"""

import json
import tempfile
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
  for size in batch_sizes:
    if size < 1:
      raise UserError(f'--batch_sizes: {size}: must be at least 1')
  wanted = values.runtimes or _RUNTIMES
  for name in wanted:
    if name not in _RUNTIMES:
      raise UserError(
        f'--runtimes: {name!r}: must be one of {", ".join(_RUNTIMES)}'
      )
  files = [Path(name) for name in values.files or ()]
  for path in files:
    if path.suffix != '.onnx' or not path.is_file():
      raise UserError(f'--files: {path}: must be an ONNX file, FILE.onnx')
  if files and 'onnxruntime' not in wanted:
    raise UserError('--files: they run in onnxruntime; see --runtimes')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, finished_run, forward_times, runtimes

  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(finished_run.read_config(directory))
  effort = forward_times.Effort(values.rounds, values.seconds)
  console = rich.console.Console()
  found = {
    'workdir': values.workdir,
    'versions': forward_times.versions(),
    'runtimes': {},
    'left_out': {},
    'rows': [],
  }
  with tempfile.TemporaryDirectory() as scratch:
    for name in dict.fromkeys(wanted):
      try:
        if name == 'jax':
          runtime = runtimes.in_jax(directory)
        else:
          runtime = runtimes.in_onnx_runtime(directory, files, Path(scratch))
      except UserError as error:
        if values.runtimes or files:  # it was asked for
          raise
        found['left_out'][name] = str(error)
        console.print(
          f'{name} is left out: {error}',
          markup=False,
          highlight=False,
          soft_wrap=True,
        )
        continue
      measured = forward_times.measure(
        runtime, tuple(dict.fromkeys(batch_sizes)), effort
      )
      forward_times.show(runtime.about, measured, console)
      found['runtimes'][name] = runtime.about
      found['rows'] += measured
  if values.json:
    Path(values.json).write_text(json.dumps(found, indent=2) + '\n')


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
