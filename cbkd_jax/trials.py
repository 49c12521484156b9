"""Student blocks that learn alone, each from its teacher block.

A trial is a student block that learns the teacher block's output from the
teacher's own input of that block. So blocks do not depend on each other, and
all train side by side on one forward pass of the teacher (C. Li et al.,
Block-wisely Supervised Neural Architecture Search with Knowledge Distillation,
CVPR 2020).

Nothing here depends on the scale of the teacher's features: a block's input
and output count in units of their own spread, its parameters in units of their
first sizes.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cbkd_jax import blocks, collectives, compression
from cbkd_jax.batch import Examples
from cbkd_jax.blocks import Network, Tree, Variables
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.models.adapter import Adapted
from cbkd_jax.program import Program
from cbkd_jax.replicas import Replicas, spmd


@dataclasses.dataclass(frozen=True)
class Trial:
  """A student block at one width, alone.

  Attributes:
    block: its index.
    keep: the keep ratio.
    module: the block, which takes and returns the teacher's channels.
    raw: whether it takes and returns the teacher's features as they are;
      else in units of their spread, the output around its mean.
  """

  block: int
  keep: float
  module: Any
  raw: bool


class Spread(NamedTuple):
  """A teacher block's features in numbers.

  Attributes:
    input: root mean square of its input, a scalar.
    mean: of its output, `[channels]`.
    output: root mean square of the output around `mean`, a scalar.
  """

  input: jax.Array
  mean: jax.Array
  output: jax.Array


class State(NamedTuple):
  """What a trial's training changes.

  Attributes:
    params: in units of their first sizes, so that all begin at about 1.
    batch_stats: of its normalisations.
    opt_state: of the optimiser.
  """

  params: Tree
  batch_stats: Tree
  opt_state: Any


def tried(
  students: Mapping[float, compression.Student], dtype: Any, raw: bool
) -> dict[tuple[int, float], Trial]:
  """Every compressed block at every keep ratio; equal blocks are one trial.

  Args:
    students: the student at each keep ratio.
    dtype: the compute dtype.
    raw: as in `Trial`, for blocks between adapters; others always are.

  Returns:
    (block, keep ratio) -> trial.
  """
  found, same = {}, {}
  for keep, student in students.items():
    parts = student.network(dtype, folded=False).blocks
    for i in range(student.inherit, len(parts)):
      module, own = parts[i], True
      if isinstance(module, Adapted):
        # The deepest block's output is to have the teacher's channels too.
        module = module.clone(expand=student.teacher.widths[i], parent=None)
        own = raw
      trial = Trial(i, keep, module, own)
      found[i, keep] = same.setdefault((i, module), trial)
  return found


def step(
  teacher_network: Network,
  group: Sequence[Trial],
  augmentation: Augmentation,
  axis: str | None,
  states: Sequence[State],
  given: tuple[Variables, Sequence[Spread], Sequence[Tree]],
  rate: jax.Array,
  examples: Examples,
) -> tuple[tuple[State, ...], jax.Array]:
  """One step of each trial on a batch; every trial's gradient is its own.

  Args:
    teacher_network: the teacher.
    group: the trials.
    augmentation: holds mean and std; nothing random happens.
    axis: the replicas' axis.
    states: of the trials.
    given: the teacher's variables, each block's spread, and the first sizes
      of each trial's parameters.
    rate: the learning rate; with 0 no parameter changes.
    examples: a replica's share of the batch.

  Returns:
    The new states, and `[trials, 2]` over the global batch: mean square of
    the error, and of what a constant would leave, in the target's units.
  """
  teacher, spreads, sizes = given
  x = normalise(examples.images, augmentation)
  outputs, _ = blocks.run(
    teacher_network, teacher, x, stop=len(teacher_network.blocks)
  )
  ends = [out.output.astype(jnp.float32) for out in outputs]
  after, losses = [], []
  for trial, state, size in zip(group, states, sizes):
    spread = spreads[trial.block]
    target = around(ends[trial.block], spread)

    def loss_fn(params, trial=trial, state=state, size=size, target=target):
      params = jax.tree.map(jnp.multiply, params, size)
      spread, x = spreads[trial.block], ends[trial.block - 1]
      out, updated = trial.module.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        x if trial.raw else x / spread.input,
        train=True,
        mutable=['batch_stats'],
      )
      y = out.output.astype(jnp.float32)
      y = around(y, spread) if trial.raw else y
      stats = updated.get('batch_stats', state.batch_stats)
      return jnp.mean(jnp.square(y - target)), stats

    (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params
    )
    grads, stats = collectives.mean((grads, stats), axis)
    updates, opt_state = _TX.update(grads, state.opt_state)
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    after.append(State(params, stats, opt_state))
    losses.append(jnp.stack([loss, jnp.mean(jnp.square(target))]))
  return tuple(after), collectives.mean(jnp.stack(losses), axis)


# Gradients count in units of their own size, too.
_TX = optax.scale_by_adam()


@functools.cache
def compiled_step(
  teacher_network: Network,
  group: tuple[Trial, ...],
  augmentation: Augmentation,
  replicas: Replicas,
) -> Program:
  """`(states, given, rate, examples [devices, ...]) -> (states, losses)`.

  The states are donated.
  """
  fn = functools.partial(
    step, teacher_network, group, augmentation, replicas.axis
  )
  return spmd(fn, replicas, replicated=3, donate=(0,))


def around(y: jax.Array, spread: Spread) -> jax.Array:
  """`y` around its mean, in units of its spread; channels come last."""
  return (y - spread.mean.reshape((1,) * (y.ndim - 1) + (-1,))) / spread.output


def start(
  trial: Trial, variables: tuple[Tree, Tree], spread: Spread
) -> tuple[State, Tree]:
  """A trial before its first step, and its parameters' first sizes.

  Args:
    trial: the trial.
    variables: its first params and batch_stats.
    spread: of its block.

  Returns:
    The state, and a tree of scalars like its params. A layer's size is the
    root mean square of its entries; that of an adapter's bias, which may
    begin at 0, is the spread of what it is added to.
  """
  params, batch_stats = variables
  adapters = {'reduce': spread.input, 'expand': spread.output}

  def size(path, leaf):
    names = [key.key for key in path]
    if len(names) == 2 and names[0] in adapters and names[1] == 'bias':
      return jnp.float32(adapters[names[0]] if trial.raw else 1)
    rms = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32))))
    return jnp.where(rms > 0, rms, 1.0)

  sizes = jax.tree.map_with_path(size, params)
  units = jax.tree.map(jnp.divide, params, sizes)
  # Copied: a step donates them, and they may be the teacher's own.
  batch_stats = jax.tree.map(jnp.array, batch_stats)
  return State(units, batch_stats, _TX.init(units)), sizes


def spreads(
  teacher_network: Network,
  teacher: Variables,
  augmentation: Augmentation,
  replicas: Replicas,
  batches: Iterable[Examples],
) -> tuple[Spread, ...]:
  """Each teacher block's spread over some batches.

  Args:
    teacher_network: the teacher.
    teacher: its variables, on the devices.
    augmentation: holds mean and std.
    replicas: the devices.
    batches: on the devices.
  """

  run = _compiled_moments(teacher_network, augmentation, replicas)
  found = [replicas.fetch(run(teacher, batch)) for batch in batches]
  means = jax.tree.map(lambda *x: np.mean(np.float64(x), 0), *found)
  return tuple(
    Spread(
      _positive(before[1].mean()),
      jnp.asarray(own[0], jnp.float32),
      _positive((own[1] - own[0] ** 2).mean()),
    )
    for before, own in itertools.pairwise(means)
  )


@functools.cache
def _compiled_moments(
  teacher_network: Network, augmentation: Augmentation, replicas: Replicas
) -> Program:
  """`(variables, examples) -> [(mean, mean square) per channel]`.

  Of the images, then of each block's output.
  """

  def moments(variables, examples):
    x = normalise(examples.images, augmentation)
    outputs, _ = blocks.run(
      teacher_network, variables, x, stop=len(teacher_network.blocks)
    )
    ends = [x, *(out.output.astype(jnp.float32) for out in outputs)]
    found = [
      (jnp.mean(y, _all_but_last(y)), jnp.mean(jnp.square(y), _all_but_last(y)))
      for y in ends
    ]
    return collectives.mean(found, replicas.axis)

  return spmd(moments, replicas, replicated=1)


def _positive(square: float) -> jax.Array:
  """Its root; 1 where nothing varies."""
  return jnp.float32(np.sqrt(square) if square > 0 else 1)


def _all_but_last(x: jax.Array) -> tuple[int, ...]:
  return tuple(range(x.ndim - 1))
