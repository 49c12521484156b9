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
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from cbkd_jax import (
  blocks,
  compression,
  initialization,
  sharding,
  summary,
  trials,
  workdir,
)
from cbkd_jax.batch import Examples
from cbkd_jax.blocks import Architecture, Network, Tree, Variables
from cbkd_jax.data import Split, Streamed
from cbkd_jax.data.augment import Augmentation, normalise
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


class Losses(NamedTuple):
  """What a probe has found.

  Attributes:
    keep: the probed keep ratios, falling.
    blocks: the compressed blocks' indices.
    losses: per block and keep ratio the fraction of the variance of the
      teacher's output that the student block leaves unexplained.
    steps: of each trial's training.
    seconds: of the whole probe.
    compile_seconds: of these, compiling.
  """

  keep: tuple[float, ...]
  blocks: tuple[int, ...]
  losses: tuple[tuple[float, ...], ...]
  steps: int
  seconds: float
  compile_seconds: float


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
  tried = trials.tried(
    {k: _student(exp, exp.architecture, k) for k in keep}, exp.dtype, raw
  )
  training, rating = _rows(exp, len(train), steps)
  network = sharding.gathered(exp.teacher_network, exp.replicas)
  on_devices = exp.replicas.divide(teacher)
  count = math.ceil(initialization.CALIBRATION_EXAMPLES / len(training[0]))
  calibration = _batches(exp.replicas, train, training[:count])
  spreads = trials.spreads(
    network, on_devices, augmentation, exp.replicas, calibration
  )
  first = _first(exp, keep, teacher, train, augmentation, spreads)
  placed, groups = exp.replicas.put(spreads), []
  for k in keep:
    group = [t for t in dict.fromkeys(tried.values()) if t.keep == k]
    begun = [
      trials.start(t, first[t.block, k], spreads[t.block]) for t in group
    ]
    if group:
      program = trials.compiled_step(
        network, tuple(group), augmentation, exp.replicas
      )
      groups.append(_Group(program, group, exp.replicas, *zip(*begun)))
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


def damages(
  found: Losses, candidates: Sequence[Sequence[float]]
) -> list[list[float]]:
  """What each candidate keep ratio harms, for `budget.solve`.

  -log(1 - loss), for the sum of it over blocks is the logarithm of a product:
  of what a block passes on the next one passes on its own share. It is the
  loss where that is small; a block that passes nothing on is no bargain,
  however small it is, which a sum of losses, each at most 1, would make it.

  Between the probed keep ratios the loss is a straight line over log(keep).
  Beyond them over keep, to no loss at 1, where the block may be the teacher's,
  and to a loss of 1 at 0. A loss below that of a wider block is noise: it
  counts as the wider one's.

  Args:
    found: what a probe has measured.
    candidates: per compressed block, its keep ratios.

  Returns:
    Per block and candidate a number of at least 0 that grows as keep falls.
  """
  table = []
  for losses, keep in zip(found.losses, candidates):
    loss = _interpolated(found.keep, losses, np.asarray(keep, float))
    # Of blocks that pass on next to nothing, too, the wider is better.
    passed = np.maximum(1 - loss, _LEAST_PASSED * np.asarray(keep))
    table.append([float(x) for x in np.abs(np.log(passed))])
  return table


_LEAST_PASSED = 0.01  # times keep


def _interpolated(
  probed: Sequence[float], losses: Sequence[float], keep: np.ndarray
) -> np.ndarray:
  """The loss at each of `keep`; `probed` falls."""
  known = np.minimum(np.maximum.accumulate(losses), 1)
  inside = np.interp(np.log(keep), np.log(probed[::-1]), known[::-1])
  above = known[0] * (1 - keep) / (1 - probed[0])
  below = 1 - (1 - known[-1]) * keep / probed[-1]
  found = np.where(keep > probed[0], above, inside)
  return np.where(keep < probed[-1], below, found)


def show(found: Losses, console: rich.console.Console) -> None:
  """Prints the losses as a table."""
  table = summary.new_table(
    "Variance of a block's output that narrower ones leave unexplained"
  )
  table.add_column('keep', no_wrap=True)
  for k in found.keep:
    table.add_column(f'{k:g}', justify='right', no_wrap=True)
  for block, losses in zip(found.blocks, found.losses):
    table.add_row(f'block {block}', *(f'{loss:.3f}' for loss in losses))
  console.print(table)
  console.print(
    f'probe: {found.steps} steps, {found.seconds:.1f} s, of these '
    f'{found.compile_seconds:.1f} s compiling',
    highlight=False,
  )


def read(path: Path) -> Losses:
  """What `Losses._asdict` was written as."""
  found = workdir.read_json(path)
  losses = tuple(tuple(row) for row in found.pop('losses'))
  keep, indices = tuple(found.pop('keep')), tuple(found.pop('blocks'))
  return Losses(keep=keep, blocks=indices, losses=losses, **found)


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
    self.states, losses = self.program(*self.arguments(given, rate))
    if rates:
      self.rated.append(losses)

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


def _student(
  exp: Experiment, architecture: Architecture, keep: float
) -> compression.Student:
  """The student whose compressed blocks all have one keep ratio."""
  fields, inherit = exp.config['compression'], exp.config['inherit']
  rest = len(architecture.widths) - inherit
  return compression.compress(
    architecture,
    keep=(1.0,) * inherit + (keep,) * rest,
    depth=fields['depth'],
    inherit=inherit,
    width_multiple_of=fields['width_multiple_of'],
    allow_any_order=fields['allow_any_order'],
  )


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


def _first(
  exp: Experiment,
  keep: Sequence[float],
  teacher: Variables,
  train: Split | Streamed,
  augmentation: Augmentation,
  spreads: Sequence[Spread],
) -> dict[tuple[int, float], tuple[Tree, Tree]]:
  """(block, keep ratio) -> (params, batch_stats), as `compression.init` says.

  Of trials that are one, the first keep ratio alone has an entry.
  """
  kind = exp.config['compression']['init']
  students = {k: _student(exp, exp.local, k) for k in keep}
  local = trials.tried(students, exp.dtype, raw=kind == 'slice')
  if kind == 'pca':
    outputs = _outputs(exp, teacher, train, augmentation)
  found = {}
  for k, student in students.items():
    parts = list(exp.local.network().blocks)
    for i in range(student.inherit, len(parts)):
      parts[i] = local[i, k].module
    network = Network(tuple(parts), exp.local.head())
    own = [i for i, at in local if at == k and local[i, at].keep == k]
    if kind == 'slice':
      begun = _sliced(exp, network, student.units, teacher, own)
    else:
      begun = _drawn(exp, network, own)
    for i in own:
      params, batch_stats = begun.params[i], begun.batch_stats[i]
      if kind == 'pca' and not local[i, k].raw:
        params = initialization.fit_adapters(
          local[i, k].module,
          params,
          batch_stats,
          outputs[i - 1] / spreads[i].input,
          trials.around(outputs[i], spreads[i]),
        )
      found[i, k] = params, batch_stats
  return found


def _drawn(exp: Experiment, network: Network, own: Sequence[int]) -> Variables:
  """Random variables of the blocks `own`."""
  rng = exp.rng('probe')
  return blocks.init(network, rng, exp.image_shape, tuple(own))


def _sliced(
  exp: Experiment,
  network: Network,
  units: Sequence[int],
  teacher: Variables,
  own: Sequence[int],
) -> Variables:
  """The teacher's most important channels in the blocks `own`."""

  def from_(start: Variables) -> Variables:
    for i in own:
      start = initialization.initialize_block(
        'slice',
        i,
        teacher=exp.local,
        units=units[i],
        network=network,
        random=start,
        teacher_network=exp.local.network(),
        teacher_variables=teacher,
        images=None,
      )
    return start

  # Drawing is seconds of compiling, mostly for nothing: first see whether
  # slicing leaves anything as it was drawn.
  shapes = blocks.shapes(network, exp.image_shape)
  unset = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shapes)
  sliced = from_(unset)
  chosen = [[trees[i] for i in own] for trees in sliced]
  if any(np.isnan(x).any() for x in jax.tree.leaves(chosen)):
    drawn = _drawn(exp, network, range(len(network.parts)))
    sliced = from_(drawn)
  return sliced


def _outputs(
  exp: Experiment,
  teacher: Variables,
  train: Split | Streamed,
  augmentation: Augmentation,
) -> list[jax.Array]:
  """Each teacher block's output on some images."""
  first = np.arange(min(initialization.CALIBRATION_EXAMPLES, len(train)))
  ((images, _),) = train.batches([first])
  images = normalise(jnp.asarray(images), augmentation)
  network = exp.local.network()
  stop = len(network.blocks)
  outputs, _ = blocks.run(network, teacher, images, stop=stop)
  return [out.output for out in outputs]
