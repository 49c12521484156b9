"""How fast steps are: several programs in turn, in one process."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from cbkd_jax import blocks, cache, step, timing
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.program import peak_bytes
from cbkd_jax.replicas import Replicas
from cbkd_jax.spec import StepSpec

_MIN_ROUNDS = 5


@dataclasses.dataclass
class Subject:
  """A phase's steps on random images, ready to be timed.

  Attributes:
    spec: what is static in the step.
    call: the compiled program of several steps.
    single: the compiled program of one step, for XLA's counts.
    state: is used up and replaced by each call.
    teacher: its variables.
    data: the images.
    batches: draws to take in turn.
    compile_seconds: tracing and compiling `call`.
    taken: calls so far.
  """

  spec: StepSpec
  call: jax.stages.Compiled
  single: jax.stages.Compiled
  state: step.TrainState
  teacher: Variables | None
  data: step.Resident
  batches: Sequence[step.Drawn]
  compile_seconds: float
  taken: int = 0

  def run(self) -> float:
    """Seconds of one call."""
    drawn = self.batches[self.taken % len(self.batches)]
    self.taken += 1
    began = time.perf_counter()
    self.state, metrics = self.call(self.state, self.teacher, self.data, drawn)
    jax.block_until_ready((self.state, metrics))
    return time.perf_counter() - began

  def counts(self, local_batch: int) -> tuple[float, float]:
    """XLA's (operations, bytes) per example of a single step."""
    cost = self.single.cost_analysis()
    return cost['flops'] / local_batch, cost['bytes accessed'] / local_batch

  def peak_memory(self) -> int:
    """Bytes on a device: arguments, results and what is between."""
    return peak_bytes(self.call)


def naive(spec: StepSpec) -> StepSpec:
  """The step without the sharing: teacher and hybrid each run in full.

  The hybrid's frozen parts are arrays of its own (`create_train_state`
  copies), so XLA can't merge the two. Gradients are those of the trained
  block alone: what `requires_grad=False` gives elsewhere.
  """
  return dataclasses.replace(spec, shared=0)


def prepare(
  spec: StepSpec,
  replicas: Replicas,
  *,
  batch_size: int,
  per_call: int,
  examples: int,
  classes: int,
  cache_dtype: str | None = None,
) -> Subject:
  """Compiles a phase's steps on random images and weights.

  Args:
    spec: the phase.
    replicas: the devices.
    batch_size: examples per step over all devices.
    per_call: steps in one call.
    examples: random images.
    classes: random labels are below.
    cache_dtype: look up what the phase can't change, kept like this (see
      `storage.Layout`); None: compute it.
  """
  random = np.random.default_rng(0)
  student = draw(spec.student, spec.image_shape, 1)
  teacher = None
  if spec.teacher is not None:
    teacher = draw(spec.teacher, spec.image_shape, 0)
    student = Variables(
      *(
        (*theirs[: spec.shared], *ours[spec.shared :])
        for ours, theirs in zip(student, teacher)
      )
    )
  data = step.Resident(
    random.integers(0, 256, (examples, *spec.image_shape), np.uint8),
    random.integers(0, classes, examples, np.int32),
  )
  state = step.create_train_state(spec, student, teacher, jax.random.key(0))
  rest = spec.unshared(teacher)
  state, rest = replicas.divide((state, rest))
  data = replicas.put(data)
  if cache_dtype is not None:
    plan = cache.plan(spec, cache_dtype, examples)
    kept = cache.fill(
      plan,
      'device',
      spec,
      state,
      rest,
      data,
      replicas=replicas,
      batch_size=batch_size,
    )
    spec, data = cache.with_layout(spec, plan), data._replace(cache=kept.rows)
  devices = len(replicas.devices)
  rows = spec.fixed_views * examples if spec.fixed_views else examples
  shape = devices, per_call, batch_size // devices
  batches = [
    replicas.put_shares(step.Drawn(random.integers(0, rows, shape, np.int32)))
    for _ in range(8)
  ]
  program = step.compiled_train(spec, replicas)
  spent = program.compile_seconds
  call = program.compiled(state, rest, data, batches[0])
  spent = program.compile_seconds - spent
  first = np.asarray(batches[0].rows)[:, :1]
  single = program.compiled(
    state, rest, data, replicas.put_shares(step.Drawn(first))
  )
  return Subject(spec, call, single, state, rest, data, batches, spent)


def draw(
  network: Network, image_shape: tuple[int, int, int], seed: int
) -> Variables:
  """Random weights that keep activations finite, by NumPy: nothing compiles."""
  random = np.random.default_rng(seed)

  def one(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    if len(leaf.shape) > 1:
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return (scale * random.standard_normal(leaf.shape)).astype(leaf.dtype)
    positive = path[-1].key in ('scale', 'var')
    return np.full(leaf.shape, float(positive), leaf.dtype)

  return jax.tree.map_with_path(one, blocks.shapes(network, image_shape))


def take_turns(
  subjects: Mapping[str, Subject], rounds: int, seconds: float
) -> dict[str, np.ndarray]:
  """Times all subjects in turns, see `timing.take_turns`.

  Args:
    subjects: by name.
    rounds: at most so many, after two to warm up.
    seconds: none begins after these, but five are made if `rounds` allows.

  Returns:
    Seconds of each call, by name, `[rounds]`.
  """
  return timing.take_turns(
    {name: subject.run for name, subject in subjects.items()},
    most=rounds,
    least=_MIN_ROUNDS,
    seconds=seconds,
    warm_up=2,
  )
