"""Images in folders, one folder per class.

DIR/CLASS/IMAGE is one split, 'train'; in DIR/SPLIT/CLASS/IMAGE every folder of
class folders is a split. The classes are the folders' names, sorted. Hidden
files, and what macOS and Windows leave behind, are not seen.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cbkd_jax.data import decoding
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.errors import UserError

_NOT_SEEN = ('__MACOSX', 'Thumbs.db', 'desktop.ini')
# If some folders are splits, these are too; if all are these, none is a class.
_SPLITS = ('train', 'val', 'valid', 'validation', 'test')


@dataclass(frozen=True)
class Files:
  """A split's images, in the order of their classes and names.

  Attributes:
    directory: of the class folders.
    class_names: their names.
    names: 'CLASS/IMAGE' as bytes, [n]. One array, as it goes to every reader
      process.
    labels: int32 [n].
    channels: that the images are to have; None: 3.
  """

  directory: str
  class_names: tuple[str, ...]
  names: np.ndarray
  labels: np.ndarray
  channels: int | None

  def keys(self) -> list[bytes]:
    """What each example is called, wherever the folder lies."""
    return self.names.tolist()

  def where(self, number: int) -> str:
    """An image's path."""
    return os.path.join(self.directory, os.fsdecode(self.names[number]))

  def images(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Reads images.

    Raises:
      UserError: naming one that can't be read.
    """
    return [self._read(self.where(n)) for n in numbers]

  def _read(self, path: str) -> np.ndarray:
    try:
      content = Path(path).read_bytes()
    except OSError as e:
      raise UserError(f'{path}: {e.strerror}') from None
    return decoding.decode(content, self.channels, path)


@dataclass(frozen=True)
class Folder:
  """A set's splits: each name's directory of class folders."""

  directories: dict[str, Path]
  channels: int | None

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.directories)

  def open(self, split: str) -> Files:
    """Lists a split's images; reads none.

    Raises:
      UserError: its folders are not as they must be.
    """
    directory = self.directories[split]
    folders, files = _entries(directory)
    if not folders:
      raise UserError(
        f'{directory}: has no class folders; there must be one for each class, '
        f'{split}/CLASS/IMAGE'
      )
    _refuse_images(directory, files)
    names = [_images(directory / name) for name in folders]
    paths = [
      os.fsencode(f'{folder}/{name}')
      for folder, own in zip(folders, names)
      for name in own
    ]
    labels = np.repeat(
      np.arange(len(folders), dtype=np.int32), [len(own) for own in names]
    )
    return Files(
      str(directory), tuple(folders), np.array(paths), labels, self.channels
    )


def open_set(wanted: Wanted) -> Folder:
  """Finds out which splits a folder has.

  Args:
    wanted: its `dir` is the folder, its `image_shape` says how many channels
      the images are to have.

  Raises:
    UserError: there are no class folders.
  """
  channels = wanted.image_shape[-1] if wanted.image_shape else None
  root = Path(wanted.dir).expanduser()
  if not root.is_dir():
    what = 'a file, not a folder' if root.is_file() else 'no such folder'
    raise UserError(f'data.dir = {wanted.dir!r}: {what}')
  folders, files = _entries(root)
  named = [name for name in folders if name.lower() in _SPLITS]
  divided = [name for name in folders if _entries(root / name)[0]]
  if divided:
    splits = sorted({*named, *divided})
    return Folder({name: root / name for name in splits}, channels)
  _refuse_images(root, files)
  if named == folders:  # or there are none
    raise UserError(
      f'data.dir = {wanted.dir!r}: has no class folders; there must be '
      'CLASS/IMAGE or train/CLASS/IMAGE in it'
    )
  return Folder({'train': root}, channels)


def _entries(directory: Path) -> tuple[list[str], list[os.DirEntry]]:
  """Names of the folders in a directory, and all else, sorted."""
  try:
    with os.scandir(directory) as entries:
      seen = sorted(
        (
          entry
          for entry in entries
          if not entry.name.startswith('.') and entry.name not in _NOT_SEEN
        ),
        key=lambda entry: entry.name,
      )
  except OSError as e:
    raise UserError(f'{directory}: {e.strerror}') from None
  folders = [entry.name for entry in seen if entry.is_dir()]
  return folders, [entry for entry in seen if not entry.is_dir()]


def _is_image(name: str) -> bool:
  return name.lower().endswith(decoding.SUFFIXES)


def _refuse_images(directory: Path, files: Sequence[os.DirEntry]) -> None:
  """Images beside class folders are of no class."""
  for entry in files:
    if _is_image(entry.name):
      raise UserError(
        f'{entry.path}: lies in no class folder; must be {directory}/CLASS/'
        f'{entry.name}'
      )


def _images(folder: Path) -> list[str]:
  """The names of a class's images."""
  folders, files = _entries(folder)
  if folders:
    raise UserError(
      f'{folder / folders[0]}: is a folder; images must lie directly in the '
      f'folder of their class, {folder}'
    )
  for entry in files:
    if not _is_image(entry.name):
      kinds = ', '.join(decoding.SUFFIXES)
      raise UserError(
        f'{entry.path}: no image by its name; must end with one of {kinds}'
      )
    if not entry.is_file():
      raise UserError(f'{entry.path}: is no file, or a link to nothing')
  if not files:
    raise UserError(f'{folder}: is an empty class; delete it or fill it')
  return [entry.name for entry in files]
