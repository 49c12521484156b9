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
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import tensorflow_datasets as tfds

from cbkd_jax.data.tiny_imagenet_zip import IMAGE_SHAPE, read_layout
from cbkd_jax.errors import EXIT_USAGE, UserError


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
