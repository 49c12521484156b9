"""Tiny ImageNet as a TFDS set, prepared from its official zip.

  python -m cbkd_jax.data.tiny_imagenet --zip=tiny-imagenet-200.zip \\
      --data_dir=DIR

200 classes, 64x64 pixels, 100,000 train and 10,000 validation images (the
zip's test images have no labels). The zip is at
http://cs231n.stanford.edu/tiny-imagenet-200.zip
Needs no TensorFlow: the JPEGs go into array_record files as they are.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds

from cbkd_jax.errors import EXIT_USAGE, UserError

IMAGE_SHAPE = (64, 64, 3)


@dataclass(frozen=True)
class Layout:
  """What a zip contains: class names, and (entry, class) per split."""

  wnids: tuple[str, ...]
  splits: dict[str, list[tuple[str, str]]]


class TinyImagenet(
  tfds.core.GeneratorBasedBuilder,
  # This module may be loaded twice, as itself and as __main__; TFDS would
  # refuse the second class of the same name.
  skip_registration=True,
):
  """The TFDS builder; `main` is the way to run it.

  Attributes:
    zip_path: the official zip or one of the same layout, checked by
      `read_layout`.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, zip_path: str, **kwargs):
    self.zip_path = zip_path
    self.layout = read_layout(zip_path)
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
      description=(
        f'Tiny ImageNet: 64x64 images of {len(self.layout.wnids)} classes.'
      ),
      homepage='http://cs231n.stanford.edu/',
      features=tfds.features.FeaturesDict(
        {
          # Grey images get three equal channels when they are read.
          'image': tfds.features.Image(
            shape=IMAGE_SHAPE, encoding_format='jpeg'
          ),
          # In the order of wnids.txt, which is not sorted.
          'label': tfds.features.ClassLabel(names=self.layout.wnids),
        }
      ),
      supervised_keys=('image', 'label'),
      metadata=tfds.core.MetadataDict(zip_sha256=_sha256(self.zip_path)),
    )

  def _split_generators(self, dl_manager) -> dict[str, Iterator]:
    del dl_manager  # its extraction needs TensorFlow
    return {
      split: self._generate_examples(entries)
      for split, entries in self.layout.splits.items()
    }

  def _generate_examples(
    self, entries: list[tuple[str, str]]
  ) -> Iterator[tuple[str, dict]]:
    with zipfile.ZipFile(self.zip_path) as archive:
      for entry, wnid in entries:
        # Bytes, not pixels: TFDS stores them unchanged.
        yield (
          Path(entry).name,
          {'image': archive.read(entry), 'label': wnid},
        )


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


def _sha256(path: str) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def prepare(zip_path: str, data_dir: str) -> None:
  """Writes `data_dir/tiny_imagenet/1.0.0` and prints what went into it.

  Args:
    zip_path: as in `read_layout`.
    data_dir: where TFDS sets are kept; made where missing.

  Raises:
    UserError: the zip is bad, the directory cannot be written, or holds the
      set made from another zip. Nothing is left behind.
  """
  home = Path(data_dir).expanduser() / TinyImagenet.name
  directory = home / str(TinyImagenet.VERSION)
  try:
    sha256 = _sha256(zip_path)
  except OSError as e:
    raise UserError(f'--zip={zip_path}: {e.strerror}') from e
  print(f'{zip_path}: sha256 {sha256}')
  if (directory / 'dataset_info.json').exists():
    metadata = directory / 'metadata.json'
    if metadata.exists():
      before = json.loads(metadata.read_text())['zip_sha256']
      if before != sha256:
        raise UserError(
          f'{directory} was made from another zip, with sha256 {before}: '
          'delete it or choose another --data_dir'
        )
    print(f'{directory}: already prepared')
    return
  if directory.exists():
    # TFDS would take it for prepared.
    raise UserError(
      f'{directory} exists, but without dataset_info.json: delete it'
    )

  missing = [p for p in (home, *home.parents) if not p.exists()]
  try:
    builder = TinyImagenet(
      zip_path=zip_path,
      data_dir=str(home.parent),
      # The default format needs TensorFlow.
      file_format='array_record',
    )
    images = sum(map(len, builder.layout.splits.values()))
    print(f'writing {images} images to {directory} ...', flush=True)
    tfds.disable_progress_bar()  # an error shall be the only line on stderr
    with (
      tempfile.TemporaryDirectory() as downloads,  # stays empty
      # TFDS talks of downloading.
      contextlib.redirect_stdout(io.StringIO()),
    ):
      builder.download_and_prepare(
        download_dir=downloads,
        download_config=tfds.download.DownloadConfig(try_download_gcs=False),
      )
  except OSError as e:
    raise UserError(f'--data_dir={data_dir}: {e}') from e
  finally:
    # TFDS removes its half-written directory, not the empty ones above it.
    with contextlib.suppress(OSError):
      for made in missing:
        made.rmdir()
  print(f'{len(builder.layout.wnids)} classes')
  for split, info in builder.info.splits.items():
    print(f'{split}: {info.num_examples} examples')
  print(f'prepared in {directory}: --config.data.dir={home.parent}')


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    """One line, without the usage text before it."""
    self.exit(EXIT_USAGE, f'{self.prog}: {message}\n')


def main(argv: list[str] | None = None) -> int:
  """Parses the command line; returns the exit code."""
  parser = _Parser(
    prog='cbkd_jax.data.tiny_imagenet',
    description='Prepares Tiny ImageNet as a TFDS set.',
    allow_abbrev=False,
  )
  parser.add_argument('--zip', required=True, help='tiny-imagenet-200.zip')
  parser.add_argument(
    '--data_dir', required=True, help='directory of TFDS sets, made if missing'
  )
  args = parser.parse_args(argv)
  try:
    prepare(args.zip, args.data_dir)
  except UserError as e:
    print(f'{parser.prog}: {e}', file=sys.stderr)
    return EXIT_USAGE
  return 0


if __name__ == '__main__':
  # TFDS looks for the package of a builder's class, and __main__ has none.
  from cbkd_jax.data import tiny_imagenet

  sys.exit(tiny_imagenet.main())
