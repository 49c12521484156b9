"""What the official Tiny ImageNet zip holds, read and checked as a whole."""

import zipfile
import zlib
from dataclasses import dataclass

from cbkd_jax.errors import UserError

IMAGE_SHAPE = (64, 64, 3)


@dataclass(frozen=True)
class Layout:
  """What a zip contains: class names, and (entry, class) per split."""

  wnids: tuple[str, ...]
  splits: dict[str, list[tuple[str, str]]]


def read_layout(zip_path: str) -> Layout:
  """Reads and checks a whole zip, so that a bad one is found before writing.

  Args:
    zip_path: a zip with one top folder that holds wnids.txt,
      train/<wnid>/images/*.JPEG, val/images/*.JPEG and
      val/val_annotations.txt.

  Returns:
    Its classes and images.

  Raises:
    UserError: not a zip, damaged, incomplete, or with contradictions.
  """
  try:
    with zipfile.ZipFile(zip_path) as archive:
      layout = _layout(archive)
      for entries in layout.splits.values():
        for entry, _ in entries:
          _check_image(entry, archive.read(entry))
  except UserError as e:
    raise UserError(f'--zip={zip_path}: {e}') from e
  except (
    OSError,
    EOFError,
    RuntimeError,  # encrypted, or compressed in an unknown way
    UnicodeDecodeError,
    zipfile.BadZipFile,
    zlib.error,
  ) as e:
    reason = e.strerror if isinstance(e, OSError) and e.strerror else e
    raise UserError(f'--zip={zip_path}: cannot be read: {reason}') from e
  return layout


def _layout(archive: zipfile.ZipFile) -> Layout:
  files = {f for f in archive.namelist() if not f.endswith('/')}
  tops = sorted(f[:-9] for f in files if f.endswith('/wnids.txt'))
  if not tops:
    raise UserError('no <folder>/wnids.txt in it')
  top = tops[0]

  def lines(path: str) -> list[str]:
    if top + path not in files:
      raise UserError(f'no {top + path} in it')
    return archive.read(top + path).decode().split('\n')

  wnids = tuple(w.strip() for w in lines('wnids.txt') if w.strip())
  if not wnids or len(set(wnids)) != len(wnids):
    raise UserError(f'{top}wnids.txt is empty or names a class twice')

  images = {w: [] for w in wnids}
  for file in sorted(files):
    path = file.removeprefix(top).split('/')
    if path[0] == 'train' and path[2:3] == ['images']:
      if path[1] not in images:
        raise UserError(f'{file} is of no class in {top}wnids.txt')
      images[path[1]].append(file)
  for wnid, of_class in images.items():
    if not of_class:
      raise UserError(f'no image in {top}train/{wnid}/images')

  annotations = {}
  for line in lines('val/val_annotations.txt'):
    name, wnid = [*line.strip().split('\t'), ''][:2]
    if not name:
      continue
    file = f'{top}val/images/{name}'
    if file not in files or wnid not in images or file in annotations:
      raise UserError(
        f'{top}val/val_annotations.txt: {name} {wnid}: the image or the class '
        'does not exist, or the image is named twice'
      )
    annotations[file] = wnid
  present = {f for f in files if f.startswith(f'{top}val/images/')}
  if not annotations or present - annotations.keys():
    raise UserError(
      f'{top}val/val_annotations.txt names {len(annotations)} of '
      f'{len(present)} validation images'
    )
  return Layout(
    wnids=wnids,
    splits={
      'train': [(f, wnid) for wnid in wnids for f in images[wnid]],
      'validation': list(annotations.items()),
    },
  )


def _check_image(entry: str, jpeg: bytes) -> None:
  import cv2
  import numpy as np

  image = None
  if jpeg:
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
  if image is None or image.shape != IMAGE_SHAPE:
    size = 'no image' if image is None else f'{image.shape[:2]} pixels'
    raise UserError(f'{entry} is {size}, not {IMAGE_SHAPE[:2]}')
