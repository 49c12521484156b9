"""What a run shows while it goes: metrics.jsonl, TensorBoard, the terminal."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import rich.console
import rich.progress
import tensorboardX

_PLAIN_SECONDS = 10  # between two lines where the output is no terminal


class Monitor:
  """Writes a run's metrics and its progress.

  metrics.jsonl holds no times: that of a resumed run is the same, byte for
  byte, as that of a run that was never interrupted.
  """

  def __init__(self, workdir: Path, console: rich.console.Console):
    self.console = console
    self._path = workdir / 'metrics.jsonl'
    self._tensorboard_dir = workdir / 'tensorboard'
    self._file = None
    self._board = None

  def open(self, position: int, global_step: int) -> None:
    """Cuts the records back to where a checkpoint stands and goes on there.

    Args:
      position: bytes of metrics.jsonl to keep.
      global_step: steps taken in all phases; TensorBoard drops what is later.
    """
    self.close()
    self._path.touch()
    with self._path.open('r+b') as file:
      file.truncate(position)
    self._file = self._path.open('a')
    self._board = tensorboardX.SummaryWriter(
      str(self._tensorboard_dir), purge_step=global_step
    )

  def position(self) -> int:
    """Bytes in metrics.jsonl."""
    self._file.flush()
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
    record = {'stage': stage, 'step': step, **values}
    self._file.write(json.dumps(record) + '\n')
    for name, value in values.items():
      if name != 'examples':
        self._board.add_scalar(name, value, global_step)

  def close(self) -> None:
    """Flushes and closes the files."""
    if self._file:
      self._file.close()
      self._board.close()
      self._file = self._board = None

  @contextlib.contextmanager
  def progress(
    self, stage: str, start: int, total: int
  ) -> Iterator['Progress']:
    """A bar on a terminal, else a line now and then."""
    if not self.console.is_terminal:
      yield _Lines(self.console, stage, start, total)
      return
    columns = (
      rich.progress.TextColumn('{task.description:10}'),
      rich.progress.BarColumn(bar_width=None),
      rich.progress.MofNCompleteColumn(),
      rich.progress.TextColumn('{task.fields[figures]}'),
      rich.progress.TimeRemainingColumn(compact=True),
    )
    with rich.progress.Progress(*columns, console=self.console) as bar:
      task = bar.add_task(stage, completed=start, total=total, figures='')
      yield _Bar(bar, task)


class Progress:
  """How far a phase is."""

  def update(
    self, step: int, metrics: Mapping[str, float], examples_per_second: float
  ) -> None:
    """Shows the metrics of a step."""


def _figures(metrics: Mapping[str, float], examples_per_second: float) -> str:
  return (
    f'loss {metrics["loss"]:.4f}  accuracy {metrics["accuracy"]:.3f}  '
    f'{examples_per_second:,.0f} examples/s'
  )


class _Bar(Progress):
  def __init__(self, bar: rich.progress.Progress, task: rich.progress.TaskID):
    self._bar, self._task = bar, task

  def update(self, step, metrics, examples_per_second):
    figures = _figures(metrics, examples_per_second)
    self._bar.update(self._task, completed=step, figures=figures)


class _Lines(Progress):
  def __init__(self, console, stage: str, start: int, total: int):
    self._console, self._stage, self._total = console, stage, total
    self._start, self._began = start, time.monotonic()
    self._last = self._began

  def update(self, step, metrics, examples_per_second):
    now = time.monotonic()
    if now - self._last < _PLAIN_SECONDS and step < self._total:
      return
    self._last = now
    left = (now - self._began) / max(1, step - self._start)
    left *= self._total - step
    self._console.print(
      f'{self._stage}: {step}/{self._total}  '
      f'{_figures(metrics, examples_per_second)}  {left:.0f} s left',
      highlight=False,
      soft_wrap=True,
    )
