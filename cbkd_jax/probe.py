"""How compressible each block is, measured before the budget is spent.

Student blocks of several widths have a short training each, alone, on the
teacher's own inputs (see `trials.py`). What each leaves unexplained of its
teacher block's output says what a keep ratio harms, and `budget.solve` spends
the budget where it harms least (C. Li et al., CVPR 2020; Bercovich et al.,
Puzzle, ICML 2025).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import initialization, sharding, trial_start, trials
from cbkd_jax.batch import Examples
from cbkd_jax.blocks import Tree, Variables
from cbkd_jax.damages import Losses
from cbkd_jax.data import Split, Streamed
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.errors import NonFiniteLossError, Preempted
from cbkd_jax.experiment import Experiment
from cbkd_jax.program import Program
from cbkd_jax.replicas import Replicas
from cbkd_jax.trials import Spread, State, Trial

# A step changes a parameter by about this fraction of its layer's size; falls
# to 0 along a cosine.
_RATE = 0.02
# A fifth of the train split, but no more examples than this, is kept from the
# trials' training, to rate them.
_HELD_OUT = 1024


def measure(
  exp: Experiment,
  teacher: Variables,
  train: Split | Streamed,
  augmentation: Augmentation,
  *,
  keep: Sequence[float],
  steps: int,
  interrupted: Callable[[], bool] = lambda: False,
) -> Losses:
  """Tries every compressed block at every keep ratio.

  The losses are those of examples that no trial was trained on, of the train
  split. Normalisations take each batch's own statistics there, too: running
  averages of so short a training still hold some of what came before it.

  Args:
    exp: the run; its own keep ratios play no part.
    teacher: the teacher's variables.
    train: the train split.
    augmentation: holds mean and std.
    keep: the keep ratios.
    steps: of each trial's training.
    interrupted: whether to stop.

  Returns:
    The losses.

  Raises:
    UserError: a keep ratio that is not possible.
    NonFiniteLossError: a trial diverged.
    Preempted: `interrupted`.
  """
  began = time.monotonic()
  keep = tuple(sorted(keep, reverse=True))
  raw = exp.config['compression']['init'] == 'slice'
  students = {k: trial_start.student(exp, exp.student, k) for k in keep}
  tried = trials.tried(students, exp.dtype, raw)
  training, rating = _rows(exp, len(train), steps)
  network = sharding.gathered(exp.teacher_network, exp.replicas)
  on_devices = exp.replicas.divide(teacher)
  count = math.ceil(initialization.CALIBRATION_EXAMPLES / len(training[0]))
  calibration = _batches(exp.replicas, train, training[:count])
  spreads = trials.spreads(
    network, on_devices, augmentation, exp.replicas, calibration
  )
  first = trial_start.first(exp, keep, teacher, train, augmentation, spreads)
  groups = []
  for k in keep:
    # Of equal blocks only the first is tried.
    group = tuple(t for t in dict.fromkeys(tried.values()) if t.keep == k)
    if group:
      program = trials.compiled_step(network, group, augmentation, exp.replicas)
      begun = [
        trials.start(t, first[t.block, k], spreads[t.block]) for t in group
      ]
      groups.append(_Group(program, group, exp.replicas, *zip(*begun)))
  placed = exp.replicas.put(spreads)
  compile_seconds = 0.0
  for at, batch in enumerate(
    _batches(exp.replicas, train, [*training, *rating])
  ):
    if interrupted():
      raise Preempted('probe: not finished, it will begin anew')
    given = on_devices, placed, batch
    if at == 0:
      compile_seconds = _compile(groups, given)
    for group in groups:
      group.step(given, _rate(at, steps), rates=at >= steps)
  found = {t: loss for group in groups for t, loss in group.losses().items()}
  indices = tuple(range(exp.config['inherit'], len(exp.architecture.widths)))
  return Losses(
    keep=keep,
    blocks=indices,
    losses=tuple(tuple(found[tried[i, k]] for k in keep) for i in indices),
    steps=steps,
    seconds=time.monotonic() - began,
    compile_seconds=compile_seconds,
  )


class _Group:
  """Trials that share a program: those of one keep ratio.

  All in one would run the teacher once, not once per ratio; but XLA takes
  longer and longer to compile it.
  """

  def __init__(
    self,
    program: Program,
    group: Sequence[Trial],
    replicas: Replicas,
    states: Sequence[State],
    sizes: Sequence[Tree],
  ):
    self.program, self.trials, self.replicas = program, group, replicas
    self.states, self.sizes = replicas.put((states, sizes))
    self.last: jax.Array | None = None
    self.rated: list[jax.Array] = []

  def arguments(
    self, given: tuple[Variables, Sequence[Spread], Examples], rate: float
  ) -> tuple[Any, ...]:
    """The program's, of the teacher's variables, spreads and a batch."""
    teacher, spreads, batch = given
    same = teacher, spreads, self.sizes
    return self.states, same, jnp.float32(rate), batch

  def step(self, given: Any, rate: float, rates: bool) -> None:
    """Takes a step; `rates`: its losses are the trials' ratings."""
    # Else the devices' memory fills with batches that wait for their turn.
    jax.block_until_ready(self.last)
    self.states, self.last = self.program(*self.arguments(given, rate))
    if rates:
      self.rated.append(self.last)

  def losses(self) -> dict[Trial, float]:
    """Each trial's error over the variance of its target."""
    error, power = np.float64(self.replicas.fetch(self.rated)).sum(0).T
    for trial, e in zip(self.trials, error):
      if not np.isfinite(e):
        raise NonFiniteLossError(
          f'probe: block {trial.block} at keep {trial.keep:g}: its loss is {e}'
        )
    # A block whose output never changes is explained by a constant.
    losses = np.divide(error, power, out=np.zeros_like(error), where=power > 0)
    return dict(zip(self.trials, map(float, losses)))


def _rows(
  exp: Experiment, examples: int, steps: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The batches to train on, and those to rate by; they share no example."""
  random = np.random.default_rng(exp.sample_seed('probe'))
  order, size = random.permutation(examples), exp.pace.batch_size
  held_out = max(1, min(_HELD_OUT, examples // 5))
  rating = np.resize(order[:held_out], (max(1, held_out // size), size))
  training = np.resize(order[held_out:], (steps, size))
  return list(training), list(rating)


def _batches(
  replicas: Replicas, split: Split | Streamed, rows: Sequence[np.ndarray]
) -> Iterator[Examples]:
  """Batches on the devices, of each of which a process reads its share."""
  devices, own = len(replicas.devices), list(replicas.own)
  shares = [batch.reshape(devices, -1)[own] for batch in rows]
  for share in split.batches(shares):
    yield replicas.put_shares(Examples(*share))


def _compile(groups: Sequence[_Group], given: Any) -> float:
  """Compiles all programs side by side; the seconds that it takes."""
  began = time.monotonic()
  with futures.ThreadPoolExecutor() as pool:
    for done in [
      pool.submit(group.program.compiled, *group.arguments(given, 0.0))
      for group in groups
    ]:
      done.result()
  return time.monotonic() - began


def _rate(at: int, steps: int) -> float:
  """The learning rate of a step: a cosine's, 0 from `steps` on."""
  return _RATE * 0.5 * (1 + math.cos(math.pi * min(1, at / steps)))
