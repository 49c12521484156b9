"""What a run shows while it goes: metrics.jsonl, TensorBoard, the terminal."""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import tensorboardX

from cbkd_jax import buckets

_PLAIN_SECONDS = 10  # between two lines where the output is no terminal


class Monitor:
  """Writes a run's metrics and its progress.

  metrics.jsonl holds no times: that of a resumed run is the same, byte for
  byte, as that of a run that was never interrupted.

  Args:
    workdir: of the run. In a bucket nothing can be appended to: there the
      files grow on the local disk and are copied whenever a checkpoint asks
      for the `position`, and at the end.
    console: where progress is shown.
    writes: False in a process that leaves all files to another one.
  """

  def __init__(
    self, workdir: Path, console: rich.console.Console, writes: bool = True
  ):
    self.console = console
    self._workdir, self._writes = workdir, writes
    self._copied: dict[Path, int] = {}
    self._temporary = None
    local = workdir
    if writes and buckets.is_bucket(workdir):
      self._temporary = tempfile.TemporaryDirectory(prefix='cbkd_jax_')
      local = Path(self._temporary.name)
    self._path = local / 'metrics.jsonl'
    self._tensorboard_dir = local / 'tensorboard'
    self._file = None
    self._board = None

  def open(self, position: int, global_step: int) -> None:
    """Cuts the records back to where a checkpoint stands and goes on there.

    Args:
      position: bytes of metrics.jsonl to keep.
      global_step: steps taken in all phases; TensorBoard drops what is later.
    """
    self._flush_and_close()
    if not self._writes:
      return
    self._copied.clear()
    log = self._workdir / self._path.name
    if self._temporary and log.exists():
      self._path.write_bytes(log.read_bytes())
    self._path.touch()
    with self._path.open('r+b') as file:
      # Never longer: a log that someone has cut is not filled up with zeros.
      file.truncate(min(position, self._path.stat().st_size))
    self._file = self._path.open('a')
    # By its own name a file is of a second: that of a phase which begins in
    # the same one would take its place.
    self._board = tensorboardX.SummaryWriter(
      str(self._tensorboard_dir),
      purge_step=global_step + 1,
      filename_suffix=f'.{time.time_ns()}',
    )

  def position(self) -> int:
    """Bytes in metrics.jsonl, which is safe there; 0 if another writes it."""
    if not self._writes:
      return 0
    self._file.flush()
    self._copy()
    return self._path.stat().st_size

  def write(
    self, stage: str, step: int, global_step: int, values: Mapping[str, Any]
  ) -> None:
    """Adds one record.

    Args:
      stage: the phase's name.
      step: steps taken in the phase.
      global_step: steps taken in all phases, TensorBoard's axis.
      values: numbers by name.
    """
    if not self._writes:
      return
    record = {'stage': stage, 'step': step, **values}
    self._file.write(json.dumps(record) + '\n')
    for name, value in values.items():
      if name != 'examples':
        self._board.add_scalar(name, value, global_step)

  def close(self) -> None:
    """Flushes and closes the files; the object is of no use afterwards."""
    self._flush_and_close()
    if self._temporary:
      self._temporary.cleanup()

  def _flush_and_close(self) -> None:
    if self._file:
      self._file.close()
      self._board.close()
      self._file = self._board = None
      self._copy()

  def _copy(self) -> None:
    """Copies to the bucket what has grown since."""
    if not self._temporary:
      return
    if self._board:
      self._board.flush()
    for path in self._path, *self._tensorboard_dir.iterdir():
      size = path.stat().st_size
      if self._copied.get(path) != size:
        name = path.relative_to(self._path.parent)
        (self._workdir / name).write_bytes(path.read_bytes())
        self._copied[path] = size

  @contextlib.contextmanager
  def progress(
    self, stage: str, total: int, batch_size: int
  ) -> Iterator['Progress']:
    """A bar on a terminal, else a line now and then.

    Args:
      stage: the phase's name.
      total: its steps.
      batch_size: examples per step.
    """
    if not self.console.is_terminal:
      yield _Lines(stage, total, batch_size, self.console)
      return
    columns = (
      rich.progress.TextColumn('{task.description:10}'),
      rich.progress.BarColumn(),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn('{task.fields[figures]}'),
    )
    with rich.progress.Progress(*columns, console=self.console) as bar:
      yield _Bar(stage, total, batch_size, bar)


class Progress:
  """How far a phase is, and how fast."""

  def __init__(self, stage: str, total: int, batch_size: int):
    self._stage, self._total, self._batch_size = stage, total, batch_size
    self._first: tuple[int, float] | None = None

  def update(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the metrics of a step that is done."""
    figures = f'loss {metrics["loss"]:.4f}  accuracy {metrics["accuracy"]:.3f}'
    now = time.monotonic()
    if self._first is None:
      self._first = step, now  # what came before was compiling
    else:
      rate = (step - self._first[0]) / max(now - self._first[1], 1e-9)
      figures += f'  {rate * self._batch_size:,.0f} images/s'
      if step < self._total:
        figures += f'  {(self._total - step) / rate:.0f} s left'
    self._show(step, figures)

  def _show(self, step: int, figures: str) -> None:
    raise AssertionError('of the subclasses')


class _Bar(Progress):
  def __init__(self, stage, total, batch_size, bar: rich.progress.Progress):
    super().__init__(stage, total, batch_size)
    self._bar = bar
    self._task = bar.add_task(stage, total=total, figures='compiling')

  def _show(self, step, figures):
    self._bar.update(self._task, completed=step, figures=figures)


class _Lines(Progress):
  def __init__(self, stage, total, batch_size, console: rich.console.Console):
    super().__init__(stage, total, batch_size)
    self._console, self._last = console, time.monotonic()

  def _show(self, step, figures):
    now = time.monotonic()
    if now - self._last < _PLAIN_SECONDS and step < self._total:
      return
    self._last = now
    self._console.print(
      f'{self._stage}: {step}/{self._total}  {figures}',
      highlight=False,
      soft_wrap=True,
    )
