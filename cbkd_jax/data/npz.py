"""Images and labels as NumPy arrays in .npz files.

In one file: `train_images`, `train_labels`, `test_images`, ... as MedMNIST has
them, or `x_train`, `y_train`, ... as Keras has them; `images` and `labels` are
one split, 'train'. In a directory: SPLIT.npz with `images` and `labels`.
Without `class_names` a class is called by its number.
"""

import contextlib
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax.data import decoding
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.errors import UserError

_IMAGES = re.compile(r'(?:(\w+)_images|x_(\w+)|(images))')
_LABELS = {'_images': '_labels', 'x_': 'y_', 'images': 'labels'}
# What a damaged file ends with; RuntimeError: encrypted.
_BAD = (
  *(OSError, ValueError, EOFError, RuntimeError, struct.error),
  *(zipfile.BadZipFile, zlib.error),
)
_lock = threading.Lock()


@dataclass
class Arrays:
  """A split; its images are read again in every process.

  Attributes:
    path: the file.
    key: of the images in it.
    class_names: its classes.
    labels: int [n].
    channels: that the images are to have; None: those they have.
  """

  path: str
  key: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  channels: int | None
  _stored: np.ndarray | None = field(default=None, repr=False)

  def __getstate__(self) -> dict[str, Any]:
    return {**self.__dict__, '_stored': None}

  def keys(self) -> list[bytes]:
    """The numbers of the examples."""
    return [str(i).encode() for i in range(len(self.labels))]

  def where(self, number: int) -> str:
    """An image's place in the file."""
    return f'{self.path}: {self.key}[{number}]'

  def images(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Reads images."""
    with _lock:  # readers are threads
      if self._stored is None:
        self._stored = _images(self.path, self.key)
    return [
      decoding.with_channels(self._stored[n], self.channels, self.where(n))
      for n in numbers
    ]


@dataclass(frozen=True)
class Npz:
  """A set's splits: each name's file and key of images."""

  places: dict[str, tuple[str, str]]
  channels: int | None

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.places)

  def open(self, split: str) -> Arrays:
    """Reads a split.

    Raises:
      UserError: its arrays are not what they must be.
    """
    path, key = self.places[split]
    images = _images(path, key)
    labels = _labels(path, key, len(images))
    names = _class_names(path)
    highest = int(labels.max())
    if names is None:
      names = tuple(map(str, range(highest + 1)))
    elif highest >= len(names):
      raise UserError(
        f'{path}: has a label {highest}, but only {len(names)} class_names'
      )
    return Arrays(path, key, names, labels, self.channels, images)


def open_set(wanted: Wanted) -> Npz:
  """Finds out which splits a file, or a directory of files, has.

  Args:
    wanted: its `dir` is the file or directory, its `image_shape` says how many
      channels the images are to have.

  Raises:
    UserError: it is not there, or has no images.
  """
  path = Path(wanted.dir).expanduser()
  if not path.exists():
    raise UserError(f'data.dir = {wanted.dir!r}: no such file or directory')
  if path.is_dir():
    places = {
      p.stem: (str(p), key)
      for p in sorted(path.glob('*.npz'))
      if not p.name.startswith('.')
      for key in _split_keys(str(p)).values()
    }
    what = 'SPLIT.npz with images and labels'
  else:
    found = _split_keys(str(path))
    places = {split: (str(path), key) for split, key in found.items()}
    what = 'train_images and train_labels, x_train and y_train or the like'
  if not places:
    raise UserError(f'data.dir = {wanted.dir!r}: must hold {what}')
  channels = wanted.image_shape[-1] if wanted.image_shape else None
  return Npz(places, channels)


def _split_keys(path: str) -> dict[str, str]:
  """Each split's key of images."""
  with _opened(path) as arrays:
    matches = [m for m in map(_IMAGES.fullmatch, arrays.files) if m]
  return {m[1] or m[2] or 'train': m[0] for m in matches}


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
  """An .npz file, whose errors are one line; pickles are never read."""
  try:
    with open(path, 'rb') as file:  # NumPy would not close a bad one
      arrays = np.load(file, allow_pickle=False)
      if not hasattr(arrays, 'files'):
        raise UserError(f'{path}: is no .npz file, but a single array')
      with arrays:
        yield arrays
  except UserError:
    raise
  except _BAD as e:
    reason = ' '.join(str(e).split()) or type(e).__name__
    raise UserError(f'{path}: cannot be read: {reason[:200]}') from e


def _images(path: str, key: str) -> np.ndarray:
  """The images, uint8 [n, height, width, channels]."""
  with _opened(path) as arrays:
    images = arrays[key]
  if images.dtype != np.uint8:
    raise UserError(
      f'{path}: {key} are {images.dtype}, but must be uint8, 0 to 255'
    )
  if images.ndim not in (3, 4) or 0 in images.shape:
    raise UserError(
      f'{path}: {key} have the shape {images.shape}, but must have [n, height, '
      'width] or [n, height, width, channels]'
    )
  return images if images.ndim == 4 else images[..., None]


def _labels(path: str, key: str, count: int) -> np.ndarray:
  """The labels of the images `key`, int [n]."""
  for of_images, of_labels in _LABELS.items():
    if of_images in key:
      name = key.replace(of_images, of_labels)
      break
  with _opened(path) as arrays:
    if name not in arrays.files:
      raise UserError(f'{path}: has {key}, but no {name}')
    labels = arrays[name]
  if labels.shape not in ((count,), (count, 1)):
    raise UserError(
      f'{path}: {name} have the shape {labels.shape}, but must have one label '
      f'for each of the {count} {key}'
    )
  if labels.dtype.kind not in 'iu':
    raise UserError(
      f'{path}: {name} are {labels.dtype}, but must be integers from 0'
    )
  labels = labels.reshape(count).astype(np.int64)
  if labels.min() < 0 or labels.max() >= 2**31:
    raise UserError(
      f'{path}: {name} are from {labels.min()} to {labels.max()}, but must be '
      'integers from 0'
    )
  return labels.astype(np.int32)


def _class_names(path: str) -> tuple[str, ...] | None:
  with _opened(path) as arrays:
    if 'class_names' not in arrays.files:
      return None
    names = arrays['class_names']
  if names.ndim != 1 or names.dtype.kind not in 'SU':
    raise UserError(f'{path}: class_names must be strings, one per class')
  names = names.astype(str).tolist()
  if len(set(names)) != len(names):
    raise UserError(f'{path}: class_names has a name twice')
  return tuple(names)
