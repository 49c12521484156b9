"""What each block of teacher and student costs: size, work, time, memory."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from cbkd_jax import counting, timing
from cbkd_jax.blocks import HeadOutput, Tree
from cbkd_jax.data.augment import normalise
from cbkd_jax.finished_run import Finished, Model
from cbkd_jax.program import Program, peak_bytes
from cbkd_jax.replicas import compile_options

BATCH = 64
_RUNS = 100, 7  # at most, at least
_SECONDS = 1.0  # per block; no more runs after these, roughly


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one block, or the head, in eval mode on one device.

  Attributes:
    params: trainable parameters.
    flops: of the forward pass, per example, by XLA's count.
    milliseconds: of the forward pass of a batch, the block alone: the median.
    memory_bytes: of the same by XLA's plan: the block's variables, its input
      and output, and what is between them at a time.
  """

  params: int
  flops: float
  milliseconds: float
  memory_bytes: float


@dataclasses.dataclass(frozen=True)
class BlockFigures:
  """A block before and after.

  Attributes:
    name: 'block 0', ..., 'head'.
    teacher: the teacher's.
    student: the student's, folded.
  """

  name: str
  teacher: Costs
  student: Costs


def measure(
  run: Finished, batch_size: int = BATCH, seconds: float = _SECONDS
) -> tuple[BlockFigures, ...]:
  """Runs each block of both networks alone, in turns, on test images.

  Args:
    run: the run.
    batch_size: images; of a smaller split some come more than once.
    seconds: to time a block of both networks, roughly.

  Returns:
    A block's figures each, shallowest first, and the head's.
  """
  split = run.dataset.test
  ((images, _),) = split.batches([np.arange(batch_size) % len(split)])
  images = np.asarray(jax.jit(lambda x: normalise(x, run.augmentation))(images))
  programs: dict[Any, Program] = {}
  teacher, student = (
    _prepare(model, images, programs) for model in (run.teacher, run.student)
  )
  names = [f'block {i}' for i in range(len(teacher) - 1)] + ['head']
  return tuple(
    BlockFigures(name, *_time(pair, seconds))
    for name, *pair in zip(names, teacher, student)
  )


class _Ready(NamedTuple):
  """A compiled part with its input."""

  costs: Costs
  run: Callable[[], float]


def _prepare(
  model: Model, images: np.ndarray, programs: dict[Any, Program]
) -> list[_Ready]:
  """Compiles a network's parts, each for what the ones before it make.

  Args:
    model: the network.
    images: normalised, a batch.
    programs: those of parts that were met before; is added to.
  """
  device = jax.local_devices()[0]
  x, found = jax.device_put(images, device), []
  for part, params, batch_stats in zip(model.network.parts, *model.variables):
    variables = {'params': params}
    if batch_stats:
      variables['batch_stats'] = batch_stats
    variables = jax.device_put(variables, device)
    if part not in programs:
      forward = jax.jit(functools.partial(_forward, part))
      programs[part] = Program(forward, compile_options(device))
    compiled = programs[part].compiled(variables, x)
    shape = (1, *x.shape[1:])
    costs = Costs(
      params=int(counting.part_cost(part, shape, 'params')),
      flops=counting.part_cost(part, shape, 'flops_per_example'),
      milliseconds=math.nan,
      memory_bytes=peak_bytes(compiled),
    )
    call = functools.partial(compiled, variables, x)
    found.append(_Ready(costs, timing.timed(call)))
    x = call()
  return found


def _forward(part: Any, variables: Tree, x: jax.Array) -> jax.Array:
  """What goes on to the next part, or the logits: nothing else is made."""
  out = part.apply(variables, x, train=False)
  return out.logits if isinstance(out, HeadOutput) else out.output


def _time(parts: Sequence[_Ready], seconds: float) -> list[Costs]:
  """The parts' costs, with the time that they take."""
  most, least = _RUNS
  times = timing.take_turns(
    {str(i): part.run for i, part in enumerate(parts)},
    most=most,
    least=least,
    seconds=seconds,
  )
  return [
    dataclasses.replace(
      part.costs, milliseconds=timing.Latency.of(times[str(i)]).median
    )
    for i, part in enumerate(parts)
  ]
