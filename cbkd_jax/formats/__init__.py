"""The kinds of file that a network is shipped in, one module each.

Each module has

  SUFFIX: the end of its files' names, with the dot;
  write(deployed, path): writes the file;
  load(path, info): a function from images as the file wants them, any number
    of them, to logits, both NumPy arrays; `info` is the JSON beside the file.

and may have

  write_int8(deployed, path, images): the same for `--quantize=int8`, by uint8
    images of the train split; may return what it did, for the JSON;
  LIBRARIES: names of distributions whose versions the JSON is to tell;
  require(): raises a `UserError` that names the extra to install, where a
    library is missing. Importing a module imports none that are optional.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

from cbkd_jax.errors import UserError, nearest

FORMATS = ('stablehlo', 'onnx', 'tflite', 'safetensors')


def check(names: Sequence[str]) -> None:
  """Refuses names that are no formats.

  Raises:
    UserError: naming the first, and those that there are.
  """
  for name in names or ['']:
    if name not in FORMATS:
      raise UserError(
        f"--format={','.join(names)}: '{name}' is not known"
        f'{nearest(name, FORMATS)}; known: {", ".join(FORMATS)}'
      )


def module(name: str) -> ModuleType:
  """The format's module; no other one is imported."""
  return importlib.import_module(f'{__name__}.{name}')


def require(names: Sequence[str], int8: bool) -> None:
  """Refuses formats that can't be written.

  Args:
    names: of the formats.
    int8: whether they are to be quantised.

  Raises:
    UserError: a library is missing, or the format has no int8.
  """
  for name in names:
    if int8 and not hasattr(module(name), 'write_int8'):
      able = [n for n in FORMATS if hasattr(module(n), 'write_int8')]
      raise UserError(
        f'--quantize=int8: not possible with --format={name}, only with '
        + ', '.join(able)
      )
    if hasattr(module(name), 'require'):
      module(name).require()
