"""Splits that stay on disk, read by Grain as the steps need them.

For sets that fit into no device's memory. Which examples a step sees, and how
each is cropped, follows from the phase's seed and the step alone, so that the
step is all that a resumed run needs to know: with any number of reader
processes, and of processes that share a batch, its next batch is the very one
that the uninterrupted run would have seen. Grain's own state of an iterator
says the same, for one number of readers.

Reader processes import this module and what it imports: nothing here may need
JAX.
"""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import parent_process
from typing import Any

import numpy as np
from absl import flags

from cbkd_jax.data import crops, sampler
from cbkd_jax.errors import UserError

# Records decoded at once: fewer than a batch of large images, of which every
# thread would hold one in full size; for small ones it is as fast.
_CHUNK = 32
_MOST_THREADS = 16


@dataclass(frozen=True)
class Streamed:
  """A labelled split on disk.

  Attributes:
    source: its records by number, as TFDS's data sources give them.
    name: of the set.
    first_record: where the split begins in `source`.
    size: of the split.
    classes: labels are below.
    image_shape: (height, width, channels) of what is read.
    resize: images are area-averaged to resize x resize pixels; 0: not.
    crop: 'none'; or 'random_resized', in training a random part scaled to
      `image_shape`, in evaluation the centre.
    crop_area: the least area of a random part, as a fraction of the image's.
    workers: processes that read; 0: threads of this process.
  """

  source: Any
  name: str
  first_record: int
  size: int
  classes: int
  image_shape: tuple[int, int, int]
  resize: int
  crop: str
  crop_area: float
  workers: int

  def __len__(self) -> int:
    return self.size

  def batches(
    self, positions: Iterable[np.ndarray]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images and labels at arrays of positions, as evaluation sees them.

    Args:
      positions: in the split, [...].

    Yields:
      (images uint8 [..., height, width, channels], labels int32 [...]).

    Raises:
      UserError: as `read` does, or a reader process has died.
    """
    chosen = Chosen(self, tuple(positions))
    if len(chosen) == 1:  # for which nobody need be called
      yield _pair(chosen[0])
      return
    iterator = read_ahead(chosen, workers=self.workers)
    with contextlib.ExitStack() as last:
      last.callback(end, iterator)
      for _ in range(len(chosen)):
        images, labels = next_batch(iterator)
        # Grain's arrays go back to shared memory once nobody holds them, and
        # a CPU device might hold on to what is in them.
        yield np.array(images), np.array(labels)

  def read(
    self,
    ids: np.ndarray,
    seed: int = 0,
    positions: np.ndarray | None = None,
  ) -> tuple[np.ndarray, np.ndarray]:
    """Reads examples, decodes and crops them.

    Args:
      ids: positions in the split, [n].
      seed: of the phase's stream, for random crops.
      positions: in the stream, [n]; None: as evaluation sees them.

    Returns:
      (images uint8 [n, height, width, channels], labels int32 [n]).

    Raises:
      UserError: a record is damaged or not what it should be.
    """
    images = np.empty((len(ids), *self.image_shape), np.uint8)
    labels = np.empty(len(ids), np.int32)
    for start in range(0, len(ids), _CHUNK):
      chunk = [int(i) + self.first_record for i in ids[start : start + _CHUNK]]
      for i, record in enumerate(self.source.__getitems__(chunk), start):
        position = None if positions is None else int(positions[i])
        image = self._framed(record['image'], seed, position)
        if image.shape != self.image_shape:
          what = record.get('where', self.name)
          raise UserError(
            f'data.image_shape = {self.image_shape}, but {what} has '
            f'{image.shape} with data.resize = {self.resize} and data.crop = '
            f'{self.crop!r}'
          )
        images[i] = image
        labels[i] = self._checked(record['label'])
    return images, labels

  def _framed(
    self, image: np.ndarray, seed: int, position: int | None
  ) -> np.ndarray:
    """An image of the size that is wanted."""
    if self.crop == 'none':
      return crops.area_averaged(image, self.resize)
    size, target = image.shape[:2], self.image_shape[:2]
    if position is None:
      return crops.central(image, *target)
    box = crops.random_box(seed, position, *size, self.crop_area)
    return crops.cut(image, box, *target)

  def _checked(self, label: int) -> int:
    if not 0 <= label < self.classes:
      raise UserError(
        f'{self.name} has a label {label}, but must have 0 to '
        f'{self.classes - 1}: choose a split that is labelled'
      )
    return label


@dataclass(frozen=True)
class Chosen:
  """Batches of given examples, for Grain.

  Grain counts batches here, not examples: records that are read together cost
  a fraction of single ones.

  Attributes:
    split: what is read, as evaluation sees it.
    positions: of each batch in the split, [...].
  """

  split: Streamed
  positions: tuple[np.ndarray, ...]

  def __len__(self) -> int:
    return len(self.positions)

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    ids = self.positions[step]
    images, labels = self.split.read(ids.ravel())
    shape = (*ids.shape, *images.shape[1:])
    return {'image': images.reshape(shape), 'label': labels.reshape(ids.shape)}


@dataclass(frozen=True)
class Stream:
  """One process's share of a phase's batches, in their order, for Grain.

  Attributes:
    split: what is read, as training sees it.
    seed: of the phase's order and of random crops.
    batch_size: examples of a batch over all processes together.
    slots: places in a batch that are read here, int [local slots].
    steps: batches of the phase.
  """

  split: Streamed
  seed: int
  batch_size: int
  slots: np.ndarray
  steps: int

  def __len__(self) -> int:
    return self.steps

  def __getitem__(self, step: int) -> dict[str, np.ndarray]:
    positions = int(step) * self.batch_size + self.slots.astype(np.int64)
    ids = sampler.at(self.seed, len(self.split), positions)
    images, labels = self.split.read(ids, self.seed, positions)
    return {'image': images, 'label': labels}


def read_ahead(
  source: Chosen | Stream, *, workers: int, first_step: int = 0, ahead: int = 1
) -> Any:
  """Starts reading.

  Args:
    source: the batches.
    workers: reader processes; 0: threads of this process.
    first_step: the batch to begin with.
    ahead: batches that are read before they are asked for, at least.

  Returns:
    A Grain iterator for `next_batch`, which ends with the source. `get_state`
    and `set_state` are Grain's; `end` ends the readers. Their arrays are
    to be copied: see `Streamed.batches`.
  """
  import cv2
  import grain

  if not flags.FLAGS.is_parsed():  # in another program than our commands
    flags.FLAGS.mark_as_parsed()
  workers = min(workers, max(1, len(source) - first_step))
  # One thread per processor, over all readers: decoding lets go of the GIL.
  threads = min(_MOST_THREADS, (os.cpu_count() or 1) // max(1, workers))
  threads = max(1, threads)
  buffered = max(threads, -(-ahead // max(1, workers)))
  # Threads of its own would only stand in the way of ours.
  cv2.setNumThreads(0)
  data = grain.MapDataset.source(source)[first_step:].to_iter_dataset(
    grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffered)
  )
  if workers:
    options = grain.MultiprocessingOptions(
      num_workers=workers, per_worker_buffer_size=buffered
    )
    data = data.mp_prefetch(options, worker_init_fn=_begin_worker)
  return iter(data)


def next_batch(iterator: Any) -> tuple[np.ndarray, np.ndarray]:
  """The next batch of `read_ahead`, as (images, labels).

  Raises:
    UserError: a record can't be read, or a reader process has died.
  """
  try:
    batch = next(iterator)
  except RuntimeError as e:
    raise UserError(
      f'data.workers: a reader process has ended: {" ".join(str(e).split())}; '
      'fewer of them need less memory'
    ) from e
  return _pair(batch)


def end(iterator: Any) -> None:
  """Ends the readers of `read_ahead`, and frees what they have read."""
  iterator.close()
  # Grain's errors, also that which ends an iterator, hold their own frames,
  # and these shared memory.
  gc.collect()


def _pair(batch: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
  return batch['image'], batch['label']


def _begin_worker(index: int, count: int) -> None:
  """Sets up a reader process."""
  del index, count
  import cv2

  cv2.setNumThreads(0)
  # A signal to the whole group of processes is the parent's to handle: it
  # saves its state first. Readers end with it, also when it is killed.
  for name in signal.SIGINT, signal.SIGTERM:
    signal.signal(name, signal.SIG_IGN)
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  parent_process().join()
  os._exit(1)
