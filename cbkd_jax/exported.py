"""An exported file with the JSON beside it, as one network."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax import formats, workdir
from cbkd_jax.deployed import normalise
from cbkd_jax.errors import UserError

INCLUDED = 'included'  # in the file, of the normalisation


@dataclasses.dataclass(frozen=True)
class Exported:
  """A network in a file.

  Attributes:
    info: the JSON's content.
    run: from images as the file wants them to logits.
  """

  info: Mapping[str, Any]
  run: Callable[[np.ndarray], np.ndarray]

  def logits(self, images: np.ndarray) -> np.ndarray:
    """What the network says of images.

    Args:
      images: uint8 `[batch, height, width, channels]`, of the size that the
        JSON names, not normalised.

    Returns:
      float32 `[batch, classes]`.

    Raises:
      UserError: the images are of another type or size.
    """
    wanted = tuple(self.info['input']['shape'][1:])
    if images.dtype != np.uint8 or images.shape[1:] != wanted:
      raise UserError(
        f'images are {images.dtype} {images.shape}, but must be uint8 '
        f'(batch, {", ".join(map(str, wanted))})'
      )
    normalisation = self.info['input']['normalisation']
    if normalisation != INCLUDED:
      images = normalise(images, normalisation['mean'], normalisation['std'])
    return self.run(images)


def description(path: Path) -> Path:
  """The JSON beside an exported file."""
  return path.with_name(f'{path.name}.json')


def sha256(path: Path) -> str:
  """Of a file's content, in hexadecimal."""
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def load(path: str | Path) -> Exported:
  """An exported file, and what its JSON says of it.

  Args:
    path: the file, as `cbkd_jax.export` has written it.

  Raises:
    UserError: one of the two is missing, they don't belong together, or a
      library that the format needs is not installed.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file')
  beside = description(path)
  if not beside.exists():
    raise UserError(
      f'{path}: {beside.name}, which says what it is, must be beside it; '
      'cbkd_jax.export writes both'
    )
  info = workdir.read_json(beside)
  if not isinstance(info, dict) or info.get('format') not in formats.FORMATS:
    raise UserError(
      f'{beside}: must name a format of {", ".join(formats.FORMATS)}'
    )
  if sha256(path) != info.get('sha256'):
    raise UserError(
      f'{path}: its SHA-256 is not that in {beside.name}: damaged, or another '
      'file; export it again'
    )
  return Exported(info, formats.module(info['format']).load(path, info))
