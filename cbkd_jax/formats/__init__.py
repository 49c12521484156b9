"""The kinds of file that a network is shipped in, one module each.

Each module has

  SUFFIX: the end of its files' names, with the dot;
  write(deployed, path): writes the file;
  load(path, info): a function from images as the file wants them, any number
    of them, to logits, both NumPy arrays; `info` is the JSON beside the file.

and may have

  LIBRARIES: names of distributions whose versions the JSON is to tell;
  BATCH: how many images the file takes at a time, where not any number;
  DETAILS: what else the JSON is to tell;
  write_int8(deployed, path, images): of those in INT8, the same for
    `--quantize=int8`, by uint8 images of the train split; may return what it
    did, for the JSON, and 'float32_bytes', the size of such a file in float32.

A module is imported only if its format is asked for. One whose library is not
installed raises a `UserError` then, which names the extra to install.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

from cbkd_jax.errors import UserError, nearest

FORMATS = ('stablehlo', 'onnx', 'tflite', 'safetensors')
INT8 = ('onnx',)


def check(names: Sequence[str], int8: bool = False) -> None:
  """Refuses what can't be exported.

  Args:
    names: of formats.
    int8: whether they are to be quantised.

  Raises:
    UserError: naming the first, and those that there are.
  """
  flag = f'--format={",".join(names)}'
  for name in names or ['']:
    if name not in FORMATS:
      raise UserError(
        f"{flag}: '{name}' is not known{nearest(name, FORMATS)}; known: "
        + ', '.join(FORMATS)
      )
    if int8 and name not in INT8:
      raise UserError(
        f'{flag}: {name} has no --quantize=int8; those that have: '
        + ', '.join(INT8)
      )


def module(name: str) -> ModuleType:
  """The format's module.

  Raises:
    UserError: it needs a library that is not installed.
  """
  return importlib.import_module(f'{__name__}.{name}')


def require(names: Sequence[str], int8: bool = False) -> None:
  """Refuses what can't be exported, or not here.

  Args:
    names: of formats.
    int8: whether they are to be quantised.

  Raises:
    UserError: as `check` does, or a library is not installed.
  """
  check(names, int8)
  for name in names:
    module(name)
