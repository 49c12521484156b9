"""The student as a file: `python -m cbkd_jax.export --workdir=DIR
--format=stablehlo,onnx`.

Writes `DIR/export/student.stablehlo` and so on, a JSON beside each. Every file
is loaded anew and run on test images before it is kept.
"""

from absl import flags

from cbkd_jax import command
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  command.require(workdir=values.workdir, format=values.format)
  for name in 'examples', 'calibration':
    value = values[name].value
    if value is not None and value < 1:
      raise UserError(f'--{name}={value}: must be at least 1')
  if values.tolerance is not None and not values.tolerance >= 0:
    raise UserError(f'--tolerance={values.tolerance}: must be 0 or more')

  from cbkd_jax import formats

  formats.check(values.format, int8=values.quantize == 'int8')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, exporting, finished_run, quantization

  directory = buckets.path(values.workdir, '--workdir')
  command.set_up_devices(finished_run.read_config(directory))
  request = exporting.Request(
    formats=tuple(dict.fromkeys(values.format)),
    of=values.of,
    normalise=values.normalise,
    fold=values.fold,
    quantize=values.quantize,
    calibration=values.calibration or quantization.CALIBRATION_EXAMPLES,
    examples=values.examples,
    tolerance=values.tolerance,
    data_dir=values.data_dir,
  )
  exporting.export(directory, request, rich.console.Console())


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, "A finished run's workdir.")
  flags.DEFINE_list(
    'format', None, 'One or more of stablehlo, onnx, tflite, safetensors.'
  )
  flags.DEFINE_enum(
    'of', 'student', ['student', 'teacher'], 'Which network of the run.'
  )
  flags.DEFINE_bool(
    'normalise',
    True,
    'Whether the files take pixels of 0 to 255, and normalise them themselves.',
  )
  flags.DEFINE_bool(
    'fold', True, 'Multiply normalisations into the layers before them.'
  )
  flags.DEFINE_enum(
    'quantize', '', ['', 'int8'], 'int8: weights and activations in 8 bits.'
  )
  flags.DEFINE_integer(
    'calibration',
    None,
    'Train images by which int8 is calibrated, at most; default 512.',
  )
  flags.DEFINE_integer(
    'examples',
    None,
    'Test images that each file is run on, at most; default 10,000, or 1,000 '
    'that are streamed from disk.',
  )
  flags.DEFINE_float(
    'tolerance',
    None,
    'The largest difference of a logit, as a share of the largest logit; '
    'default 1e-4. Of int8 the loss of accuracy; default 0.02.',
  )
  flags.DEFINE_string('data_dir', None, "Default: the config's data.dir.")
  command.run(main)
