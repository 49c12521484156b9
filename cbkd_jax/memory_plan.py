"""What a step holds on each device: estimated from shapes, and XLA's count."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import rich.box
import rich.console
import rich.table

from cbkd_jax import ahead, step, views
from cbkd_jax.blocks import Tree, Variables
from cbkd_jax.counting import tree_bytes
from cbkd_jax.experiment import Experiment, local_batch, plan_augmentation
from cbkd_jax.program import peak_bytes
from cbkd_jax.replicas import Replicas
from cbkd_jax.spec import StepSpec


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Bytes on one device, by what they are for.

  Attributes:
    state: parameters, batch statistics, the optimiser's and the objective's.
    teacher: its parts that the student doesn't share.
    gathered: the largest part and its gradient, whole, where devices divide
      arrays.
    gradients: of what trains.
    activations: what the backward pass of a micro-batch keeps of its forward
      pass; with `remat` also what it computes again at once.
  """

  state: int
  teacher: int
  gathered: int
  gradients: int
  activations: int

  @property
  def held(self) -> int:
    """What stays from step to step."""
    return self.state + self.teacher

  @property
  def total(self) -> int:
    """All of it, the data set and XLA's own needs apart."""
    return self.held + self.gathered + self.gradients + self.activations


def estimate(spec: StepSpec, replicas: Replicas, batch: int) -> Estimate:
  """Estimates the memory of a step on one device; nothing is computed.

  Args:
    spec: the phase, its networks without a replicas' axis and not gathered.
    replicas: the devices.
    batch: examples per device and step.
  """
  student, teacher = spec.shapes()
  rest = spec.unshared(teacher)
  trained = tuple(p for p, t in zip(student.params, spec.trained) if t)
  parts = [*zip(*student), *(zip(*rest) if rest else ())]
  micro_batch = batch // spec.micro_batches
  state, kept = _run_shapes(spec, micro_batch)
  activations = tree_bytes(kept)
  if spec.remat:
    plain = dataclasses.replace(spec, remat=False)
    again = tree_bytes(_run_shapes(plain, micro_batch)[1]) - activations
    # Of the unit with the largest input, about its share of all.
    activations += again * max(map(tree_bytes, kept)) // activations
  return Estimate(
    state=device_bytes((student, state), replicas),
    teacher=device_bytes(rest, replicas),
    gathered=2 * max(map(tree_bytes, parts)) if replicas.model > 1 else 0,
    gradients=device_bytes(trained, replicas),
    activations=activations,
  )


def _run_shapes(spec: StepSpec, batch: int) -> tuple[Tree, list[Any]]:
  """What the state holds besides batch_stats, and what a batch's forward pass
  leaves for the backward pass."""
  student, teacher = spec.shapes()
  x = jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.float32)
  trained = tuple(p for p, t in zip(student.params, spec.trained) if t)

  def forward(trained, student, teacher, x):
    params = step.merge(spec.trained, trained, student.params)
    variables = Variables(params, student.batch_stats)
    found = views.views(spec, variables, teacher, x, spec.trained)
    return found[:2]

  def run(trained, student, teacher, x):
    seen, backward = jax.vjp(lambda t: forward(t, student, teacher, x), trained)
    params, state = spec.objective.init(jax.random.key(0), *seen)
    opt_state = spec.tx.init((*student.params, params))
    return (params, state, opt_state), jax.tree.leaves(backward)

  state, kept = jax.eval_shape(run, trained, student, teacher, x)
  # What is kept for the backward pass includes parameters, counted already.
  return state, [leaf for leaf in kept if leaf.shape[:1] == (batch,)]


def device_bytes(tree: Tree, replicas: Replicas) -> int:
  """Bytes on one device of arrays that lie as `Replicas.divide` lays them."""
  return sum(
    math.prod(replicas.divided(x).shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(tree)
  )


@dataclasses.dataclass(frozen=True)
class Measured:
  """XLA's count for a compiled step, in bytes on one device.

  Attributes:
    held: arguments without data: the state and the teacher.
    temporaries: what is between arguments and results.
    data: the data set, a cache and the batch.
    total: all but `data`; results that take no argument's place included.
  """

  held: int
  temporaries: int
  data: int
  total: int


def measure(spec: StepSpec, experiment: Experiment) -> Measured:
  """Compiles a phase's step for the devices that there are; runs nothing.

  Args:
    spec: the phase, as its step has it.
    experiment: holds devices, pace and the config.
  """
  examples = experiment.config['data']['train_size']
  spec, arguments = ahead.arguments(spec, experiment, examples)
  program = step.compiled_train(spec, experiment.replicas)
  options = dict(program.options or {})
  if experiment.replicas.devices[0].platform == 'cpu':
    # Machine code, most of the time, has no part in what is allocated.
    options['xla_backend_optimization_level'] = 0
  compiled = program.lower(*arguments).compile(options)
  sizes = compiled.memory_analysis()
  *_, resident, drawn = arguments
  shares = tree_bytes(drawn) // len(experiment.replicas.devices)
  data = tree_bytes(resident) + shares
  return Measured(
    held=sizes.argument_size_in_bytes - data,
    temporaries=sizes.temp_size_in_bytes,
    data=data,
    total=peak_bytes(compiled) - data,
  )


def show(experiment: Experiment, console: rich.console.Console) -> None:
  """Prints each phase's estimate beside XLA's count; compiles them all."""
  augmentation = plan_augmentation(experiment.config)
  table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
  table.title = 'Memory of a step per device, MiB'
  table.title_justify = 'left'
  table.add_column('', no_wrap=True)
  for header in 'estimate', 'XLA', 'held', 'by XLA', 'temporary', 'data':
    table.add_column(header, justify='right', no_wrap=True)
  for stage in experiment.stages:
    guess = estimate(
      experiment.spec(stage, augmentation, local=True),
      experiment.replicas,
      local_batch(experiment),
    )
    found = measure(experiment.spec(stage, augmentation), experiment)
    figures = (
      guess.total,
      found.total,
      guess.held,
      found.held,
      found.temporaries,
      found.data,
    )
    table.add_row(stage.name, *(f'{x / 2**20:,.1f}' for x in figures))
  console.print(table)
  console.print(
    'held: parameters, optimiser, teacher. estimate, XLA: all but the data.',
    highlight=False,
    soft_wrap=True,
  )
