"""Labelled images: read once and kept in memory, or streamed from disk.

`load` and `stream` know the embedded digits and every image-classification set
that TFDS has prepared on disk in the array_record format, which is read
without TensorFlow. What happens to the images in a training step is in
`augment.py`, the order in which they come in `sampler.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbkd_jax.data import crops, prepared
from cbkd_jax.data.opening import open_splits
from cbkd_jax.data.prepared import check_name
from cbkd_jax.data.streaming import Streamed
from cbkd_jax.errors import UserError

__all__ = ['Dataset', 'Split', 'Streamed', 'check_name', 'load', 'stream']

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
  """A data set's splits; `validation` is None where none is held out.

  All three are in memory, or all three are streamed.
  """

  name: str
  classes: int
  train: Split | Streamed
  validation: Split | Streamed | None
  test: Split | Streamed
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
  opened = open_splits(
    name,
    data_dir=data_dir,
    train_split=train_split,
    test_split=test_split,
    validation_size=validation_size,
    resize=resize,
    expected_classes=expected_classes,
    expected_train_size=expected_train_size,
  )
  classes, train_size = len(opened.class_names), opened.train_size
  everything = _read(opened.train, name, classes, resize, expected_shape)
  tested = _read(opened.test, name, classes, resize, None)
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
    class_names=opened.class_names,
  )


def stream(
  name: str,
  *,
  data_dir: str,
  train_split: str,
  test_split: str,
  validation_size: int,
  resize: int,
  crop: str,
  crop_area: float,
  workers: int,
  expected_classes: int | None,
  image_shape: tuple[int, int, int],
  expected_train_size: int | None,
) -> Dataset:
  """Opens a data set whose images stay on disk until a step needs them.

  Args:
    name: as in `load`.
    data_dir: as in `load`.
    train_split: as in `load`.
    test_split: as in `load`.
    validation_size: as in `load`.
    resize: as in `load`.
    crop: 'none', or 'random_resized', see `Streamed`.
    crop_area: the least area of a random crop, as a fraction of the image's.
    workers: processes that read; 0: threads of this process.
    expected_classes: as in `load`.
    image_shape: (height, width, channels) that images have, or are cropped
      and scaled to.
    expected_train_size: as in `load`.

  Returns:
    The data set; one image of each split has been read.

  Raises:
    UserError: as `load` does; an image that is damaged or of another size is
      found when its turn comes.
  """
  opened = open_splits(
    name,
    data_dir=data_dir,
    train_split=train_split,
    test_split=test_split,
    validation_size=validation_size,
    resize=resize,
    expected_classes=expected_classes,
    expected_train_size=expected_train_size,
  )
  if crop == 'none' and not resize and None in opened.shape:
    raise UserError(
      f"data.crop = 'none': {name} declares no single size of its images, "
      f'{opened.shape}; set data.crop, or data.resize, which is 0'
    )

  def split(source: Any, first: int, size: int) -> Streamed:
    found = Streamed(
      source=source,
      name=name,
      first_record=first,
      size=size,
      classes=len(opened.class_names),
      image_shape=tuple(image_shape),
      resize=resize,
      crop=crop,
      crop_area=crop_area,
      workers=workers,
    )
    found.read(np.arange(1))  # Reading it is the check.
    return found

  return Dataset(
    name=name,
    classes=len(opened.class_names),
    train=split(opened.train, 0, opened.train_size),
    validation=split(opened.train, opened.train_size, validation_size)
    if validation_size
    else None,
    test=split(opened.test, 0, len(opened.test)),
    class_names=opened.class_names,
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
      image = crops.area_averaged(record['image'], resize)
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
