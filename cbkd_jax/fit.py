"""One phase of training: the loop over steps, with its checkpoints."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from cbkd_jax import cache, checkpoints, step
from cbkd_jax.blocks import Variables
from cbkd_jax.errors import NonFiniteLossError, Preempted
from cbkd_jax.feed import Feed
from cbkd_jax.monitoring import Monitor
from cbkd_jax.optimizer import learning_rate_fn


@dataclasses.dataclass(frozen=True)
class Pace:
  """How often what happens, in steps.

  Attributes:
    batch_size: examples per step, over all devices.
    per_call: steps in one call of the device; calls end at multiples of it.
    checkpoint_every: a checkpoint at the first call's end after so many.
    log_every: a record in metrics.jsonl.
    fixed: `per_call` is what the config says, not to be changed by `of`.
  """

  batch_size: int
  per_call: int
  checkpoint_every: int
  log_every: int
  fixed: bool = True

  def of(self, steps: int) -> 'Pace':
    """That of a phase of so many steps.

    Fewer steps per call where all calls are then of one length: a shorter last
    one is a program of its own, on a GPU half a minute of compiling.
    """
    if self.fixed or steps <= self.per_call:
      return self
    alike = range(self.per_call, self.per_call // 2, -1)
    per_call = next((n for n in alike if steps % n == 0), self.per_call)
    return dataclasses.replace(self, per_call=per_call)


@dataclasses.dataclass
class Clock:
  """Time spent in a phase, over all its sessions, in seconds."""

  seconds: float = 0.0
  compile_seconds: float = 0.0
  cache_seconds: float = 0.0

  def examples_per_second(self, examples: int) -> float:
    """Of the steps alone, without compiling and filling a cache."""
    steps = self.seconds - self.compile_seconds - self.cache_seconds
    return examples / max(steps, 1e-9)


def fit(
  name: str,
  spec: step.StepSpec,
  state: step.TrainState,
  teacher: Variables | None,
  train: step.Resident,
  *,
  kept: cache.Kept | None,
  replicas: step.Replicas,
  pace: Pace,
  feed: Feed,
  saved: checkpoints.PhaseCheckpoints,
  monitor: Monitor,
  steps_before: int,
  interrupted: Callable[[], bool],
  clock: Clock,
  meanwhile: Callable[[], Any] = lambda: None,
) -> tuple[step.TrainState, dict[str, float]]:
  """Trains from the state's step to the phase's end.

  Args:
    name: of the phase.
    spec: what is static in its step.
    state: where to start; on the devices. It is used up.
    teacher: the teacher's variables, on the devices.
    train: the train split, on the devices.
    kept: what the phase can't change; None where it is computed.
    replicas: the devices.
    pace: how often what happens.
    feed: gives each call its batches.
    saved: where checkpoints go.
    monitor: where metrics go.
    steps_before: steps of earlier phases, for TensorBoard's axis.
    interrupted: says whether to stop.
    clock: time spent; is updated.
    meanwhile: is called once the device has its first steps.

  Returns:
    The last state, and the last step's metrics.

  Raises:
    NonFiniteLossError: naming phase, step and term.
    Preempted: `interrupted`; the state is saved, at once: what its own loss
      will be is not waited for.
  """
  total = spec.training.steps
  program = step.compiled_train(spec, replicas)
  rate = learning_rate_fn(spec.training)
  # Two collective programs at a time can starve each other of threads on
  # virtual CPU devices; on a single one there is nothing to gain.
  waits = replicas.devices[0].platform == 'cpu'
  done = int(state.step)
  began, before = time.monotonic(), clock.seconds
  compiled: dict[int, Callable] = {}
  last: dict[str, float] = {}
  pending = None
  # A checkpoint waits until the next step has shown that its loss is finite:
  # one that can only lead to NaN must not take the place of a good one.
  held = None

  def see(end: int, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """Reads the metrics of the call that ended at step `end`."""
    nonlocal held
    values = jax.device_get(metrics)
    count = len(values['loss'])
    for i in range(count):
      at = end - count + i + 1
      row = {key: float(value[i]) for key, value in values.items()}
      _check_finite(name, at, row)
      if held and at > held[0]:
        saved.save(*held)
        held = None
      if at % pace.log_every == 0 or at == total:
        monitor.write(
          name,
          at,
          steps_before + at,
          {
            'examples': at * pace.batch_size,
            **row,
            'learning_rate': float(rate(at - 1)),
          },
        )
    bar.update(end, row)
    return row

  with monitor.progress(name, total, pace.batch_size) as bar:
    while done < total:
      if interrupted():
        if pending:
          see(*pending)
        saved.save(*_checkpoint(state, spec, monitor, clock, kept))
        raise Preempted(f'{name}: stopped at step {done} of {total}, saved')
      end = min((done // pace.per_call + 1) * pace.per_call, total)
      drawn = feed.draw(done, end - done, pending and pending[1])
      if end - done not in compiled:
        waited = time.monotonic()
        compiled[end - done] = program.compiled(state, teacher, train, drawn)
        clock.compile_seconds += time.monotonic() - waited
      first = pending is None and not last
      state, metrics = compiled[end - done](state, teacher, train, drawn)
      if first:
        meanwhile()
      # The metrics are read one call late, while the device is busy.
      if pending:
        last = see(*pending)
      pending = (end, metrics)
      due = end // pace.checkpoint_every > done // pace.checkpoint_every
      if waits or due or end == total or interrupted():
        last = see(*pending)
        pending = None
      done = end
      clock.seconds = before + time.monotonic() - began
      if due and done < total:
        held = _checkpoint(state, spec, monitor, clock, kept)
  return state, last


def _check_finite(name: str, at: int, row: Mapping[str, float]) -> None:
  """Terms are looked at first: they say more than their sum."""
  for key in sorted(row, key=lambda k: k in ('loss', 'grad_norm')):
    if not math.isfinite(row[key]):
      raise NonFiniteLossError(
        f'{name}, step {at}: {key} is {row[key]}; the last checkpoint is kept'
      )


def _checkpoint(
  state: step.TrainState,
  spec: step.StepSpec,
  monitor: Monitor,
  clock: Clock,
  kept: cache.Kept | None,
  results: Mapping[str, Any] | None = None,
) -> tuple[int, Any, dict[str, Any]]:
  """The arguments of `PhaseCheckpoints.save` as things stand now."""
  progress = {
    'clock': dataclasses.asdict(clock),
    'metrics_position': monitor.position(),
    'cache_place': kept and kept.place,
    'results': results,
  }
  tree = checkpoints.snapshot(state, spec.trained)
  return int(state.step), tree, progress


def finish(
  saved: checkpoints.PhaseCheckpoints,
  state: step.TrainState,
  spec: step.StepSpec,
  monitor: Monitor,
  clock: Clock,
  kept: cache.Kept | None,
  results: Mapping[str, Any],
) -> None:
  """Saves a phase's last state together with its results."""
  saved.save(*_checkpoint(state, spec, monitor, clock, kept, results))
