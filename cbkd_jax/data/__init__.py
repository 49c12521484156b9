"""Labelled images, read once and kept in memory as uint8 arrays.

`load` knows the embedded digits and every image-classification set that TFDS
has prepared on disk in the array_record format, which is read without
TensorFlow. What happens to the images in a training step is in `augment.py`,
the order in which they come in `sampler.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbkd_jax.data import prepared
from cbkd_jax.data.prepared import check_name
from cbkd_jax.errors import UserError

__all__ = ['Dataset', 'Split', 'check_name', 'load']

# Records decoded at once: a batch costs half the time of single records, and
# one of ImageNet's 500x375 pixels stays below 150 MB.
_BATCH = 256


@dataclass(frozen=True)
class Split:
  """Images, uint8 [n, height, width, channels], and labels, int32 [n]."""

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def batches(
    self, positions: Iterable[np.ndarray]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels at arrays of positions, `[..., height, ...]`."""
    for chosen in positions:
      yield self.images[chosen], self.labels[chosen]


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
    directory = prepared.find(name, data_dir)
    builder, class_names = prepared.open_set(name, directory)
    train = prepared.open_split(builder, name, train_split, 'data.train_split')
    test = prepared.open_split(builder, name, test_split, 'data.test_split')

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
      raise prepared.unreadable(name, source.dataset_info.data_dir, e) from e
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
