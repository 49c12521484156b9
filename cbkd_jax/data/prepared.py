"""Sets that TFDS has prepared on disk, found and opened without TensorFlow."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax.data.wanted import OWN
from cbkd_jax.errors import UserError, nearest

# Sets whose code is in this package; all others are TFDS's.
_KNOWN = ('digits', 'tiny_imagenet', *OWN)
# name, name/config, name:version, name/config:version.
_NAME = re.compile(r'(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def check_name(name: str, data_dir: str) -> None:
  """Refuses a data set that nobody knows; needs no data.

  Args:
    name: as in `Wanted`.
    data_dir: as in `Wanted`; what is prepared there counts as known.

  Raises:
    UserError: the name is malformed or unknown; names the nearest known one.
  """
  match = _NAME.fullmatch(name)
  if not match:
    raise UserError(
      f"data.name = {name!r}, but it must look like 'name', 'name/config' or "
      "'name:1.2.3'"
    )
  base = match[1]
  if base in ('digits', *OWN) and name != base:
    raise UserError(f'data.name = {name!r}, but {base!r} has no configs')
  if base in _KNOWN:
    return
  root = _root(data_dir)
  prepared = (
    [p.name for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
  )
  if base in prepared:
    return
  import tensorflow_datasets as tfds  # half a second

  # The community's sets would need the network.
  catalogue = tfds.list_builders(with_community_datasets=False)
  if base not in catalogue:
    hint = nearest(base, [*_KNOWN, *prepared, *catalogue])
    raise UserError(
      f'data.name = {name!r} is no known data set: neither '
      f"{', '.join(_KNOWN)}, in TFDS's catalogue nor in {root}{hint}"
    )


def _root(data_dir: str) -> Path:
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return Path(data_dir or default).expanduser()


def find(name: str, data_dir: str) -> Path:
  """The directory of a prepared set's `dataset_info.json`."""
  base, config, version = _NAME.fullmatch(name).groups()
  root = _root(data_dir)
  home = root / base / (config or '')
  versions = {
    p.parent.name: p.parent
    for p in home.glob('*/dataset_info.json')
    if _VERSION.fullmatch(p.parent.name)
  }
  if version in versions:
    return versions[version]
  if versions and not version:
    # As numbers: 3.0.10 comes after 3.0.2.
    return versions[max(versions, key=lambda v: [*map(int, v.split('.'))])]
  if versions:
    raise UserError(
      f'data.name = {name!r}, but {home} holds only {", ".join(versions)}'
    )
  configs = sorted({p.parts[-3] for p in home.glob('*/*/dataset_info.json')})
  if configs and not config:
    raise UserError(
      f'data.name = {name!r} needs a config; prepared in {home}: '
      + ', '.join(f'{base}/{c}' for c in configs)
    )
  if base == 'tiny_imagenet':
    how = (
      'python -m cbkd_jax.data.tiny_imagenet --zip=tiny-imagenet-200.zip '
      f'--data_dir={root}'
    )
  else:
    how = (
      'python -c "import tensorflow_datasets as tfds; '
      f"tfds.builder('{name}', data_dir='{root}', "
      "file_format='array_record').download_and_prepare()\" (most sets need "
      'TensorFlow for this one step: pip install tensorflow)'
    )
  raise UserError(
    f'data.name = {name!r} is not prepared: no {home}/{version or "*"}/'
    'dataset_info.json; set TFDS_DATA_DIR or --config.data.dir to where it '
    f'is, or prepare it with: {how}'
  )


def _unreadable(name: str, directory: Any, error: Exception) -> UserError:
  # TFDS, protobuf and array_record each have their own exceptions and like
  # to explain themselves over several lines.
  reason = ' '.join(str(error).split()) or type(error).__name__
  return UserError(
    f'data.name = {name!r}: cannot read {directory}: {reason[:200]}; if it '
    'is damaged, delete it and prepare it again'
  )


def open_set(name: str, directory: Path) -> tuple[Any, tuple[str, ...]]:
  """The set's TFDS builder and its class names."""
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(directory)
    features = dict(builder.info.features)
    file_format = builder.info.file_format.value
  except Exception as e:
    raise _unreadable(name, directory, e) from e
  if file_format != 'array_record':
    raise UserError(
      f'data.name = {name!r}: {directory} holds {file_format} files, which '
      "only TensorFlow reads; prepare it with file_format='array_record'"
    )
  image, label = features.get('image'), features.get('label')
  if not (
    isinstance(image, tfds.features.Image)
    and image.np_dtype == np.uint8
    and image.shape[-1] in (1, 3)
    and isinstance(label, tfds.features.ClassLabel)
  ):
    # Sorted, because TFDS restores them in any order.
    found = ', '.join(f'{k}: {v!r}' for k, v in sorted(features.items()))
    raise UserError(
      f"data.name = {name!r} must have a uint8 'image' of 1 or 3 channels and "
      f"a class 'label', but it has {' '.join(found.split())}"
    )
  return builder, tuple(label.names)


@dataclass(frozen=True)
class Source:
  """TFDS's records by number, with errors of one line."""

  records: Any
  name: str

  def __len__(self) -> int:
    return len(self.records)

  def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
    try:
      return self.records.__getitems__(ids)
    except Exception as e:
      directory = self.records.dataset_info.data_dir
      raise _unreadable(self.name, directory, e) from e


def open_split(builder: Any, name: str, expression: str, field: str) -> Source:
  """The records of a split expression."""
  try:
    size = builder.info.splits[expression].num_examples
  except ValueError as e:
    reason = str(e).splitlines()[0].split(' See format')[0]
    splits = ', '.join(builder.info.splits)
    raise UserError(
      f'{field} = {expression!r}, but {name} has the splits {splits}: {reason}'
    ) from e
  if size < 1:
    raise UserError(f'{field} = {expression!r} selects no example of {name}')
  try:
    records = builder.as_data_source(expression)
  except Exception as e:
    raise _unreadable(name, builder.data_dir, e) from e
  return Source(records, name)
