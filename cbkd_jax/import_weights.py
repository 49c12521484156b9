"""A published teacher: `python -m cbkd_jax.import_weights --from=FILE
--model=resnet32x4 --num_classes=100 --out=DIR`.

FILE is a PyTorch state dict, `.safetensors` or `.pth`; DIR is what
`--config.teacher.checkpoint=DIR` takes. The way back, from DIR or from a run's
workdir: `--from=DIR --to=FILE.safetensors`.
"""

from pathlib import Path

from absl import flags

from cbkd_jax import command
from cbkd_jax.errors import UserError


def main() -> None:
  """Reads the flags and does what they say."""
  values = flags.FLAGS
  source = values['from'].value
  command.require(**{'from': source})
  if (values.out is None) == (values.to is None):
    raise UserError('give one of --out=DIR and --to=FILE.safetensors')
  if values.to is not None:
    for name in 'model', 'num_classes', 'image_shape', 'allow_missing':
      if values[name].present:
        raise UserError(f'--{name} goes with --out; what --from holds is known')
    _write_back(source, values.to, values.names)
    return
  command.require(model=values.model, num_classes=values.num_classes)
  if values.num_classes < 1:
    raise UserError(f'--num_classes={values.num_classes}: must be at least 1')
  image_shape = _image_shape(values.image_shape)

  # Seconds to import, which neither help nor a wrong flag should cost.
  import rich.console

  from cbkd_jax import buckets
  from cbkd_jax.weights import imported, report, teachers

  console = rich.console.Console()
  out = buckets.path(values.out, '--out')
  imported.check_new(out)
  path = Path(source).expanduser()
  teacher = teachers.bring(
    path,
    teachers.Request(
      model=values.model,
      num_classes=values.num_classes,
      image_shape=image_shape,
      names=values.names,
      entry=values.entry,
      allow_missing=values.allow_missing,
      seed=values.seed,
    ),
    lambda match, notes: report.show(
      match, f"{path.name}, {match.naming}'s names", notes, console
    ),
  )
  imported.save(out, teacher.variables, teacher.description)
  console.print(
    f'--config.teacher.model={values.model} --config.teacher.checkpoint={out}',
    soft_wrap=True,
  )


def _write_back(source: str, to: str, names: str | None) -> None:
  """Writes a teacher of ours as a state dict."""
  path = Path(to).expanduser()
  if path.suffix != '.safetensors':
    raise UserError(f'--to={to}: must end in .safetensors')
  if path.exists():
    raise UserError(f'--to={to}: exists')

  from cbkd_jax.weights import files, imported

  arrays = imported.state_dict(source, names)
  files.write(path, arrays)
  print(f'{path}: {len(arrays)} tensors')


def _image_shape(texts: list[str] | None) -> tuple[int, int, int] | None:
  """The flag's value.

  Raises:
    UserError: it is not three whole numbers.
  """
  if texts is None:
    return None
  if len(texts) != 3 or not all(text.strip().isdecimal() for text in texts):
    raise UserError(
      f'--image_shape={",".join(texts)}: must be height,width,channels'
    )
  return tuple(int(text) for text in texts)


if __name__ == '__main__':
  flags.DEFINE_string(
    'from', None, 'A PyTorch state dict; with --to an import or a workdir.'
  )
  flags.DEFINE_string('model', None, "The network's name, e.g. resnet32x4.")
  flags.DEFINE_integer('num_classes', None, 'How many classes it tells apart.')
  flags.DEFINE_list(
    'image_shape',
    None,
    'Height, width and channels of its images; default 32,32,3, for networks '
    'of ImageNet 224,224,3.',
  )
  flags.DEFINE_string('out', None, 'The new directory.')
  flags.DEFINE_string('to', None, 'The way back: the new .safetensors file.')
  flags.DEFINE_string(
    'names',
    None,
    "Whose names the file's tensors have: repdistiller, torchvision, timm; "
    'default those that most of them match.',
  )
  flags.DEFINE_string(
    'entry', None, "Where a file holds several state dicts: one's name."
  )
  flags.DEFINE_list(
    'allow_missing',
    [],
    "Names or patterns, ours or the file's, of what may be missing, "
    'unexpected or of another shape: fc, or head/*. Drawn at random then.',
  )
  flags.DEFINE_integer('seed', 0, 'Of what is drawn at random.')
  command.run(main)
