"""Labelled images: read once and kept in memory, or streamed from disk.

`load` and `stream` know the embedded digits, every image-classification set
that TFDS has prepared on disk in the array_record format, which is read
without TensorFlow, and a user's own images, see `own`. What happens to the
images in a training step is in `augment.py`, the order in which they come in
`sampler.py`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbkd_jax.data import crops
from cbkd_jax.data.opening import open_splits
from cbkd_jax.data.prepared import check_name
from cbkd_jax.data.streaming import Streamed
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.errors import UserError

__all__ = [
  'Dataset',
  'Split',
  'Streamed',
  'Wanted',
  'check_name',
  'load',
  'stream',
]

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


def load(wanted: Wanted) -> Dataset:
  """Reads a data set into memory.

  Args:
    wanted: which, and what it must turn out to be.

  Returns:
    The data set, its splits in the order of the records.

  Raises:
    UserError: the set is unknown, not prepared or unreadable, has no images
      and labels, or is not what was expected.
  """
  opened = open_splits(wanted)
  classes, train_size = len(opened.class_names), opened.train_size
  everything = _read(opened.train, wanted, classes)
  tested = _read(opened.test, wanted, classes)
  if tested.images.shape[1:] != everything.images.shape[1:]:
    raise UserError(
      f'{wanted.title} has train images of {everything.images.shape[1:]} and '
      f'test images of {tested.images.shape[1:]}: set data.resize, which is '
      f'{wanted.resize}'
    )
  return Dataset(
    name=wanted.title,
    classes=classes,
    train=Split(everything.images[:train_size], everything.labels[:train_size]),
    validation=Split(
      everything.images[train_size:], everything.labels[train_size:]
    )
    if wanted.validation_size
    else None,
    test=tested,
    class_names=opened.class_names,
  )


def stream(wanted: Wanted) -> Dataset:
  """Opens a data set whose images stay on disk until a step needs them.

  Args:
    wanted: which, and what it must turn out to be; its `image_shape` is what
      images have, or are cropped and scaled to.

  Returns:
    The data set; one image of each split has been read.

  Raises:
    UserError: as `load` does; an image that is damaged or of another size is
      found when its turn comes.
  """
  opened = open_splits(wanted)
  if (
    wanted.crop == 'none' and not wanted.resize and None in (opened.shape or ())
  ):
    raise UserError(
      f"data.crop = 'none': {wanted.title} declares no single size of its "
      f'images, {opened.shape}; set data.crop, or data.resize, which is 0'
    )

  def split(source: Any, first: int, size: int) -> Streamed:
    found = Streamed(
      source=source,
      name=wanted.title,
      first_record=first,
      size=size,
      classes=len(opened.class_names),
      image_shape=wanted.image_shape,
      resize=wanted.resize,
      crop=wanted.crop,
      crop_area=wanted.crop_area,
      workers=wanted.workers,
    )
    found.read(np.arange(1))  # Reading it is the check.
    return found

  size = wanted.validation_size
  return Dataset(
    name=wanted.title,
    classes=len(opened.class_names),
    train=split(opened.train, 0, opened.train_size),
    validation=split(opened.train, opened.train_size, size) if size else None,
    test=split(opened.test, 0, len(opened.test)),
    class_names=opened.class_names,
  )


def _read(source: Any, wanted: Wanted, classes: int) -> Split:
  """Decodes a whole source, resized, into one array."""
  images, labels = None, np.empty(len(source), np.int32)
  for start in range(0, len(source), _BATCH):
    ids = list(range(start, min(start + _BATCH, len(source))))
    for i, record in zip(ids, source.__getitems__(ids)):
      image = crops.area_averaged(record['image'], wanted.resize)
      if images is None:
        images = np.empty((len(source), *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        where = f' ({record["where"]})' if 'where' in record else ''
        raise UserError(
          f'{wanted.title} has images of different sizes, {images.shape[1:]} '
          f'and {image.shape}{where}: set data.resize, which is {wanted.resize}'
        )
      images[i], labels[i] = image, record['label']
  if labels.min() < 0 or labels.max() >= classes:
    raise UserError(
      f'{wanted.title} has labels from {labels.min()} to {labels.max()}, but '
      f'must have 0 to {classes - 1}: choose a split that is labelled'
    )
  return Split(images, labels)
