"""Labelled images, read once and kept in memory as uint8 arrays.

`load` knows the embedded digits and every image-classification set that TFDS
has prepared on disk in the array_record format, which is read without
TensorFlow. What happens to the images in a training step is in `augment.py`,
the order in which they come in `sampler.py`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax.errors import UserError, nearest

# Sets whose code is in this package; all others are TFDS's.
OWN = ('digits', 'tiny_imagenet')
# name, name/config, name:version, name/config:version.
_NAME = re.compile(r'(\w+)(?:/([^/:]+))?(?::(\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')
# Records decoded at once: a batch costs half the time of single records, and
# one of ImageNet's 500x375 pixels stays below 150 MB.
_BATCH = 256


@dataclass(frozen=True)
class Split:
  """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""

  images: np.ndarray
  labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
  """A data set's splits; `validation` is None where none is held out."""

  name: str
  classes: int
  train: Split
  validation: Split | None
  test: Split
  class_names: tuple[str, ...]


def load(
  name: str,
  *,
  data_dir: str,
  train_split: str,
  test_split: str,
  validation_size: int,
  resize: int,
  expected_classes: int | None,
  expected_shape: tuple[int, ...] | None,
  expected_train_size: int | None,
) -> Dataset:
  """Reads a data set into memory.

  Args:
    name: 'digits', or a prepared TFDS set: 'cifar10', 'name/config',
      'name:version'; the highest prepared version where none is given.
    data_dir: where prepared sets are; '': $TFDS_DATA_DIR, else
      ~/tensorflow_datasets.
    train_split: TFDS split expression, slices allowed: 'train[:5000]'.
    test_split: likewise.
    validation_size: the last so many training examples are held out.
    resize: images are area-averaged to resize x resize pixels; 0: not.
    expected_classes: what the number of classes must be; None: anything.
    expected_shape: likewise (height, width, channels), after resizing.
    expected_train_size: likewise the training examples that are left after
      holding out `validation_size`.

  Returns:
    The data set, its splits in the order of the records.

  Raises:
    UserError: the set is unknown, not prepared or unreadable, has no `image`
      and `label`, or is not what was expected.
  """
  for field, value in ('validation_size', validation_size), ('resize', resize):
    if value < 0:
      raise UserError(f'data.{field} = {value}, but it must be 0 or more')
  check_name(name, data_dir)

  if name == 'digits':
    from cbkd_jax.data import digits

    class_names = digits.CLASS_NAMES
    train = digits.open_split(train_split, 'data.train_split')
    test = digits.open_split(test_split, 'data.test_split')
  else:
    directory = _find(name, data_dir)
    builder, class_names = _open(name, directory)
    train = _open_split(builder, name, train_split, 'data.train_split')
    test = _open_split(builder, name, test_split, 'data.test_split')

  # What the headers tell is checked before any image is decoded.
  classes = len(class_names)
  if expected_classes not in (None, classes):
    raise UserError(
      f'data.classes = {expected_classes}, but {name} has {classes}'
    )
  if validation_size >= len(train):
    raise UserError(
      f'data.validation_size = {validation_size}, but {name} has only '
      f'{len(train)} examples in data.train_split = {train_split!r}'
    )
  train_size = len(train) - validation_size
  if expected_train_size not in (None, train_size):
    held_out = (
      f' after holding out data.validation_size = {validation_size}'
      if validation_size
      else ''
    )
    raise UserError(
      f'data.train_size = {expected_train_size}, but {name} has {train_size} '
      f'in data.train_split = {train_split!r}{held_out}'
    )

  everything = _read(train, name, classes, resize, expected_shape)
  tested = _read(test, name, classes, resize, None)
  if tested.images.shape[1:] != everything.images.shape[1:]:
    raise UserError(
      f'{name} has train images of {everything.images.shape[1:]} and test '
      f'images of {tested.images.shape[1:]}: set data.resize, which is {resize}'
    )
  return Dataset(
    name=name,
    classes=classes,
    train=Split(everything.images[:train_size], everything.labels[:train_size]),
    validation=Split(
      everything.images[train_size:], everything.labels[train_size:]
    )
    if validation_size
    else None,
    test=tested,
    class_names=class_names,
  )


def check_name(name: str, data_dir: str) -> None:
  """Refuses a data set that nobody knows; needs no data.

  Args:
    name: as in `load`.
    data_dir: as in `load`; what is prepared there counts as known.

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
  if base == 'digits' and name != 'digits':
    raise UserError(f"data.name = {name!r}, but 'digits' has no configs")
  if base in OWN:
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
    hint = nearest(base, [*OWN, *prepared, *catalogue])
    raise UserError(
      f'data.name = {name!r} is no known data set: neither digits, '
      f"tiny_imagenet, in TFDS's catalogue nor in {root}{hint}"
    )


def _root(data_dir: str) -> Path:
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return Path(data_dir or default).expanduser()


def _find(name: str, data_dir: str) -> Path:
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


def _open(name: str, directory: Path) -> tuple[Any, tuple[str, ...]]:
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


def _open_split(builder: Any, name: str, expression: str, field: str) -> Any:
  """A random-access source of the records of a split expression."""
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
    return builder.as_data_source(expression)
  except Exception as e:
    raise _unreadable(name, builder.data_dir, e) from e


def _read(
  source: Any,
  name: str,
  classes: int,
  resize: int,
  expected_shape: tuple[int, ...] | None,
) -> Split:
  """Decodes a whole source, resized, into one array."""
  images, labels = None, np.empty(len(source), np.int32)
  for start in range(0, len(source), _BATCH):
    ids = list(range(start, min(start + _BATCH, len(source))))
    try:
      records = source.__getitems__(ids)
    except Exception as e:
      raise _unreadable(name, source.dataset_info.data_dir, e) from e
    for i, record in zip(ids, records):
      image = _resized(record['image'], resize)
      if images is None:
        if expected_shape and tuple(expected_shape) != image.shape:
          raise UserError(
            f'data.image_shape = {tuple(expected_shape)}, but {name} has '
            f'{image.shape}' + (f' with data.resize = {resize}' * bool(resize))
          )
        images = np.empty((len(source), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        raise UserError(
          f'{name} has images of different sizes, {images.shape[1:]} and '
          f'{image.shape}: set data.resize, which is {resize}'
        )
      images[i], labels[i] = image, record['label']
  if labels.min() < 0 or labels.max() >= classes:
    raise UserError(
      f'{name} has labels from {labels.min()} to {labels.max()}, but must '
      f'have 0 to {classes - 1}: choose a split that is labelled'
    )
  return Split(images, labels)


def _resized(image: np.ndarray, resize: int) -> np.ndarray:
  if not resize or image.shape[:2] == (resize, resize):
    return image
  import cv2

  small = cv2.resize(image, (resize, resize), interpolation=cv2.INTER_AREA)
  # OpenCV drops a single channel.
  return small.reshape(resize, resize, image.shape[2])
