"""A user's own images: folders, .npz files, Hugging Face's `datasets`.

None of them needs to be shuffled: examples come in a random order, always the
same, in which each class is spread evenly. So any slice of a split, and what
`validation_size` holds out, has the classes in the split's proportions.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from cbkd_jax.data import folder, hf, npz, splits
from cbkd_jax.data.wanted import OWN, Wanted
from cbkd_jax.errors import UserError

_KINDS = dict(zip(OWN, (folder, npz, hf), strict=True))


class Records(Protocol):
  """A split as it is stored; goes to reader processes.

  Attributes:
    class_names: its classes, which another split may have in another order.
    labels: int [n].
  """

  class_names: tuple[str, ...]
  labels: np.ndarray

  def keys(self) -> list[bytes]:
    """What its order comes from: a name of each example, [n]."""

  def where(self, number: int) -> str:
    """What errors call an example."""

  def images(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Reads images, uint8 [height, width, channels]."""


@dataclass(frozen=True)
class Source:
  """Examples by number, as TFDS's data sources give them.

  Attributes:
    records: the split that they are of.
    numbers: of each in `records`, int [n].
    labels: int32 [n], by the train split's classes.
  """

  records: Records
  numbers: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.numbers)

  def __getitems__(self, ids: Sequence[int]) -> list[dict[str, Any]]:
    numbers = [int(self.numbers[i]) for i in ids]
    images = self.records.images(numbers)
    return [
      {'image': image, 'label': self.labels[i], 'where': self.records.where(n)}
      for i, n, image in zip(ids, numbers, images)
    ]


def open_splits(wanted: Wanted) -> tuple[tuple[str, ...], Source, Source]:
  """Opens a set of the user's own.

  Args:
    wanted: which, of one of the names in `OWN`.

  Returns:
    The class names, which are the train split's, and the train and the test
    examples.

  Raises:
    UserError: it is not there, or not laid out as it must be.
  """
  if not wanted.dir:
    raise UserError(
      f"data.dir = '': must be where the data are, for data.name = "
      f'{wanted.name!r}'
    )
  found = _KINDS[wanted.name].open_set(wanted)
  parts = [
    splits.parse(expression, field, wanted.title, found.splits)
    for field, expression in (
      ('data.train_split', wanted.train_split),
      ('data.test_split', wanted.test_split),
    )
  ]
  opened = {
    split: found.open(split) for split in dict.fromkeys(p.split for p in parts)
  }
  class_names = opened[parts[0].split].class_names
  if len(class_names) < 2:
    raise UserError(
      f'{wanted.title}: has one class only, {class_names[0]!r}, but must have '
      'at least 2'
    )
  train, test = (_part(part, opened[part.split], class_names) for part in parts)
  return class_names, train, test


def _part(
  part: splits.Part, records: Records, class_names: tuple[str, ...]
) -> Source:
  index = {name: i for i, name in enumerate(class_names)}
  for name in records.class_names:
    if name not in index:
      raise UserError(
        f'{part.said}: has a class {name!r} that data.train_split lacks'
      )
  if records.labels.min() < 0:
    raise UserError(
      f'{part.said}: has a label {records.labels.min()}: choose a split that '
      'is labelled'
    )
  own = np.array([index[name] for name in records.class_names], np.int32)
  numbers = evenly_mixed(records.labels, records.keys())
  numbers = numbers[part.of(len(numbers))]
  return Source(records, numbers, own[records.labels[numbers]])


def evenly_mixed(labels: np.ndarray, keys: Sequence[bytes]) -> np.ndarray:
  """A random order in which every class is spread evenly.

  Args:
    labels: int [n].
    keys: of each example, different within a class; the order follows from
      them and the labels alone.

  Returns:
    Positions in `labels`, int [n]. How often a class comes in some of these
    in a row differs from its share by at most one half times the number of
    classes at either end.
  """
  digests = b''.join(hashlib.blake2b(k, digest_size=8).digest() for k in keys)
  hashes = np.frombuffer(digests, '>u8')
  order = np.lexsort((hashes, labels))
  counts = np.bincount(labels)
  ends = np.cumsum(counts)
  of_class = labels[order]
  ranks = np.arange(len(order)) - (ends - counts)[of_class]
  return order[np.lexsort((hashes[order], (ranks + 0.5) / counts[of_class]))]
