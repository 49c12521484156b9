"""What each call of the train step is given: rows of a split, or its images."""

import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np

from cbkd_jax import cache
from cbkd_jax.batch import Drawn, Examples
from cbkd_jax.data import Split, Streamed, sampler, streaming
from cbkd_jax.replicas import Replicas
from cbkd_jax.spec import StepSpec

# Above this share of a phase's time, what it waits for is worth a line.
_MUCH = 0.2


class Feed(Protocol):
  """A phase's batches, in the order of its steps."""

  def draw(self, first_step: int, steps: int, busy: Any = None) -> Drawn:
    """The batches of one call, on the devices.

    Args:
      first_step: the call's first.
      steps: how many it takes.
      busy: results that the devices still compute; None: nothing.
    """

  def waited(self) -> float:
    """Share of its time that the phase has waited for images, so far."""

  def close(self) -> None:
    """Ends what reads."""


def begin(
  split: Split | Streamed,
  spec: StepSpec,
  *,
  seed: int,
  first_step: int,
  kept: cache.Kept | None,
  batch_size: int,
  per_call: int,
  replicas: Replicas,
) -> Feed:
  """The feed of a phase that begins, or goes on.

  Args:
    split: the train split.
    spec: the phase.
    seed: chooses the order of the examples.
    first_step: which comes first.
    kept: what the phase can't change; None where it is computed.
    batch_size: examples per step, over all devices.
    per_call: steps of one call; calls end at multiples of it.
    replicas: the devices.
  """
  rows = _Rows(spec, kept, len(split), seed, batch_size, replicas)
  if isinstance(split, Split):
    return rows
  return _Images(split, rows, per_call, first_step, spec.training.steps)


def waiting(share: float) -> str | None:
  """What to tell of the time that a phase has waited; None: nothing."""
  if share <= _MUCH:
    return None
  return (
    f'waited for images {100 * share:.0f} % of the time: the input is the '
    'limit, not the device; see data.workers'
  )


class _Rows:
  """Rows of what the devices hold, and of what is kept on the host."""

  def __init__(
    self,
    spec: StepSpec,
    kept: cache.Kept | None,
    examples: int,
    seed: int,
    batch_size: int,
    replicas: Replicas,
  ):
    self.spec, self.kept, self.examples = spec, kept, examples
    self.seed, self.batch_size, self.replicas = seed, batch_size, replicas

  def own(self, first_step: int, steps: int) -> np.ndarray:
    """This process's rows `[own devices, steps, local_batch]`."""
    rows = sampler.rows(
      self.seed,
      self.examples,
      self.batch_size,
      first_step,
      steps,
      self.spec.fixed_views,
    )
    devices = len(self.replicas.devices)
    rows = rows.reshape(steps, devices, -1).swapaxes(0, 1)
    return np.ascontiguousarray(rows[list(self.replicas.own)])

  def draw(self, first_step: int, steps: int, busy: Any = None) -> Drawn:
    del busy
    rows = self.own(first_step, steps)
    drawn = self.kept.draw(self.spec, rows) if self.kept else Drawn(rows)
    return self.replicas.put_shares(drawn)

  def waited(self) -> float:
    return 0.0

  def close(self) -> None:
    pass


class _Images:
  """Images that are read: the next call's while the devices run this one's."""

  def __init__(
    self,
    split: Streamed,
    rows: _Rows,
    per_call: int,
    first_step: int,
    total: int,
  ):
    self._rows, self._per_call, self._total = rows, per_call, total
    replicas = rows.replicas
    slots = np.arange(rows.batch_size).reshape(len(replicas.devices), -1)
    stream = streaming.Stream(
      split,
      rows.seed,
      rows.batch_size,
      slots[list(replicas.own)].ravel(),
      total,
    )
    self._iterator = streaming.read_ahead(
      stream, workers=split.workers, first_step=first_step, ahead=per_call
    )
    # One thread: batches come in their order, and the loop over the steps
    # doesn't stand still while they are put together and sent.
    self._thread = ThreadPoolExecutor(1)
    self._next: Future | None = None
    self._lost, self._since = 0.0, None
    self._closed = False

  def draw(self, first_step: int, steps: int, busy: Any = None) -> Drawn:
    began = time.monotonic()
    coming = self._next or self._thread.submit(self._read, first_step, steps)
    if busy is not None and not coming.done():
      # What the loop waits for is lost only from when the devices are idle.
      jax.block_until_ready(busy)
    idle = time.monotonic()
    drawn = coming.result()
    if self._next:
      self._since = self._since or began
      self._lost += time.monotonic() - idle
    end = first_step + steps
    following = min(self._per_call, self._total - end)
    self._next = following and self._thread.submit(self._read, end, following)
    return drawn

  def _read(self, first_step: int, steps: int) -> Drawn:
    """A call's batches, put together and sent to the devices."""
    rows = self._rows.own(first_step, steps)
    images = labels = None
    for step in range(steps):
      if self._closed:
        raise CancelledError
      batch = streaming.next_batch(self._iterator)
      if images is None:
        images, labels = (
          np.empty((*rows.shape, *x.shape[1:]), x.dtype) for x in batch
        )
      for whole, part in zip((images, labels), batch):
        whole[:, step] = part.reshape(whole[:, step].shape)
    drawn = Drawn(rows, examples=Examples(images, labels))
    return self._rows.replicas.put_shares(drawn)

  def waited(self) -> float:
    # The first batches, and compiling the step, are no part of it.
    if self._since is None:
      return 0.0
    return self._lost / max(time.monotonic() - self._since, 1e-9)

  def close(self) -> None:
    self._closed = True
    self._thread.shutdown(cancel_futures=True)
    streaming.end(self._iterator)
