"""What a set's images are like, found by reading all of them."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import rich.console

from cbkd_jax.data import crops
from cbkd_jax.data.augment import moments
from cbkd_jax.data.opening import as_flags, open_splits
from cbkd_jax.data.wanted import OWN, Wanted
from cbkd_jax.errors import UserError

_CHUNK = 32  # images that a thread reads at once
_MOST_CLASSES = 20  # that are listed


class Images(NamedTuple):
  """What was read of each image, [n, ...].

  Attributes:
    sizes: height and width as stored, [n, 2].
    grey: whether its channels are alike, bool [n].
    labels: [n].
    pixels: how many it has after resizing or cropping, [n].
    sums: of these, by channel, [n, channels].
    squares: likewise of their squares.
  """

  sizes: np.ndarray
  grey: np.ndarray
  labels: np.ndarray
  pixels: np.ndarray
  sums: np.ndarray
  squares: np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
  """A set as it is.

  Attributes:
    title: of the set.
    class_names: its classes.
    train: its training images, without those held out.
    held_out: how many.
    test: its test images.
    fields: of `config.data`, as they must be; without `image_shape`, `mean`
      and `std` where the images have no single size.
  """

  title: str
  class_names: tuple[str, ...]
  train: Images
  held_out: int
  test: Images
  fields: dict[str, Any]


def measure(fields: Mapping[str, Any]) -> Found:
  """Reads a set's images.

  Args:
    fields: `config.data`; what it says of classes, numbers and sizes is not
      looked at, but for the size that 'random_resized' crops to.

  Raises:
    UserError: as `data.load` does.
  """
  said = Wanted.of(fields)
  # Images in as many channels as they have.
  wanted = dataclasses.replace(
    said, classes=None, image_shape=None, train_size=None
  )
  opened = open_splits(wanted)
  read = functools.partial(_read, wanted=wanted, target=said.image_shape[:2])
  train, test = read(opened.train), read(opened.test)
  train = Images(*(array[: opened.train_size] for array in train))
  return Found(
    wanted.title,
    opened.class_names,
    train,
    wanted.validation_size,
    test,
    {
      'classes': len(opened.class_names),
      'train_size': opened.train_size,
      **_shape_and_moments(said, train, test),
    },
  )


def _shape_and_moments(
  wanted: Wanted, train: Images, test: Images
) -> dict[str, Any]:
  sizes = np.concatenate([train.sizes, test.sizes])
  if wanted.crop != 'none':
    size = wanted.image_shape[:2]
  elif wanted.resize:
    size = (wanted.resize, wanted.resize)
  elif (sizes == sizes[0]).all():
    size = tuple(sizes[0].tolist())
  else:
    return {}
  channels = train.sums.shape[-1]
  if wanted.name in OWN and train.grey.all() and test.grey.all():
    channels = 1
  mean, std = moments(
    train.sums.sum(0)[:channels],
    train.squares.sum(0)[:channels],
    int(train.pixels.sum()),
  )
  return {
    'image_shape': (*size, channels),
    'mean': tuple(round(x, 4) for x in mean),
    'std': tuple(round(x, 4) for x in std),
  }


def _read(source: Any, wanted: Wanted, target: tuple[int, int]) -> Images:
  """Reads a split, with a thread per processor: decoding lets go of the GIL."""

  def chunk(start: int) -> Images:
    ids = range(start, min(start + _CHUNK, len(source)))
    rows = [
      _one(record, wanted, target) for record in source.__getitems__([*ids])
    ]
    return Images(*map(np.array, zip(*rows)))

  pool = ThreadPoolExecutor(os.cpu_count())
  try:
    parts = [*pool.map(chunk, range(0, len(source), _CHUNK))]
  finally:  # after the first error nothing more is read
    pool.shutdown(cancel_futures=True)
  if len({part.sums.shape[-1] for part in parts}) > 1:
    raise UserError(f'{wanted.title} has images of different channels')
  return Images(*map(np.concatenate, zip(*parts)))


def _one(
  record: Mapping[str, Any], wanted: Wanted, target: tuple[int, int]
) -> tuple[Any, ...]:
  """A row of `Images`."""
  image = record['image']
  height, width, channels = image.shape
  if wanted.crop == 'none':
    framed = crops.area_averaged(image, wanted.resize)
  else:
    framed = crops.central(image, *target)
  pixels = framed.reshape(-1, channels).astype(np.int64)
  return (
    (height, width),
    bool((image == image[..., :1]).all()),
    int(record['label']),
    len(pixels),
    pixels.sum(0),
    (pixels * pixels).sum(0),
  )


def show(found: Found, console: rich.console.Console) -> None:
  """Prints what was found, and the flags for a run."""

  def say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)

  held_out = f', {found.held_out:,} held out' if found.held_out else ''
  train, test = found.train, found.test
  say(
    f'{found.title}: {len(train.labels):,} train{held_out}, '
    f'{len(test.labels):,} test'
  )
  counts = np.bincount(train.labels, minlength=len(found.class_names))
  listed = ', '.join(
    f'{name} {count:,}'
    for name, count in list(zip(found.class_names, counts))[:_MOST_CLASSES]
  )
  more = ', ...' if len(counts) > _MOST_CLASSES else ''
  say(f'{len(counts)} classes, with training images: {listed}{more}')
  sizes = np.concatenate([train.sizes, test.sizes])
  least, most = sizes.min(0), sizes.max(0)
  grey = np.concatenate([train.grey, test.grey])
  say(
    f'{least[0]} to {most[0]} pixels high, {least[1]} to {most[1]} wide; '
    f'{grey.sum():,} of {len(grey):,} are grey'
  )
  say(f'\n{as_flags(found.fields, list(found.fields))}')
  if 'image_shape' not in found.fields:
    say(
      '\nThe images differ in size. Give --config.data.resize=SIDE, or '
      '--config.data.pipeline=stream --config.data.crop=random_resized '
      "--config.data.image_shape='(HEIGHT,WIDTH,3)', here too."
    )
