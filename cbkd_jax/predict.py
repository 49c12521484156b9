"""What images show: `python -m cbkd_jax.predict --workdir=DIR IMAGE...`, or
`python -m cbkd_jax.predict --model=DIR/export/student.onnx IMAGE...`.

Prints each image's most probable classes. A directory stands for the images in
it. Images of any size become what the network takes as those of the run did.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cbkd_jax import command, config
from cbkd_jax.errors import UserError

_SIGPIPE = 141  # what a shell calls an end by SIGPIPE


def main(images: Sequence[str]) -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  if (values.workdir is None) == (values.model is None):
    raise UserError('give either --workdir or --model; see --help')
  for name in 'top', 'batch_size':
    if values[name].value < 1:
      raise UserError(f'--{name}={values[name].value}: must be at least 1')
  if not images:
    raise UserError('IMAGE... is missing: files, or directories of images')
  if values.model is not None and not Path(values.model).is_file():
    raise UserError(f'--model={values.model}: no such file')

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets, classification, finished_run
  from cbkd_jax.data import image_files

  paths = image_files.expand(images)
  if values.workdir is not None:
    directory = buckets.path(values.workdir, '--workdir')
    command.set_up_devices(finished_run.read_config(directory))
    classifier = classification.of_workdir(directory)
  else:
    command.set_up_devices(config.defaults())
    classifier = classification.of_file(Path(values.model))
  console = rich.console.Console()
  found = classification.classify(
    classifier, paths, top=values.top, batch_size=values.batch_size
  )
  try:
    for number, prediction in enumerate(found):
      if values.json:
        print(json.dumps(prediction.as_json()), flush=True)
        continue
      if number:
        console.print()
      classification.show(prediction, console)
  except BrokenPipeError:  # whoever reads, `head` perhaps, has enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(_SIGPIPE)


if __name__ == '__main__':
  flags.DEFINE_string('workdir', None, "A finished run's workdir.")
  flags.DEFINE_string('model', None, 'An exported file, instead of a workdir.')
  flags.DEFINE_integer('top', 5, 'Classes of each image, at most.')
  flags.DEFINE_integer('batch_size', 64, 'Images at a time.')
  flags.DEFINE_bool('json', False, 'Print one JSON object per image and line.')
  command.run(main, arguments=True)
