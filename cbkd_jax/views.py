"""What teacher and student show of a batch, everything constant run once."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cbkd_jax import blocks
from cbkd_jax.blocks import Tree, Variables, View
from cbkd_jax.spec import StepSpec


class Frozen(NamedTuple):
  """What a phase can't change of a batch.

  Attributes:
    student: outputs of the student's parts before the first that trains.
    teacher: the teacher's view; None where there is no teacher.
  """

  student: tuple[Any, ...]
  teacher: View | None


def frozen_outputs(
  spec: StepSpec, student: Variables, teacher: Variables | None, x: jax.Array
) -> Frozen:
  """Runs everything that is frozen and lies before what trains.

  The parts that the student shares with the teacher run once, for both.

  Args:
    spec: the phase.
    student: the student's variables.
    teacher: the teacher's; parts before `spec.shared` may be None.
    x: `[batch, height, width, channels]`, normalised images.

  Returns:
    Constants of the differentiation: no backward pass goes below the first
    part that trains.
  """
  return jax.lax.stop_gradient(_run_frozen(spec, student, teacher, x))


def equal_leaves(
  spec: StepSpec, student: Variables, teacher: Variables | None
) -> tuple[int, ...]:
  """Per leaf of `frozen_outputs` the first one that is the same array.

  Args:
    spec: the phase.
    student: shapes of the student's variables.
    teacher: likewise.
  """
  x = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
  run = functools.partial(_run_frozen, spec)
  outputs = jax.make_jaxpr(run)(student, teacher, x).jaxpr.outvars
  return tuple(map(outputs.index, outputs))


def _run_frozen(
  spec: StepSpec, student: Variables, teacher: Variables | None, x: jax.Array
) -> Frozen:
  shared = spec.shared
  outputs, _ = blocks.run(spec.student, student, x, stop=shared)
  if shared:
    x = outputs[-1].output
  view = None
  if spec.teacher is not None:
    rest, _ = blocks.run(spec.teacher, teacher, x, start=shared)
    view = blocks.view([*outputs, *rest])
  rest, _ = blocks.run(spec.student, student, x, start=shared, stop=spec.frozen)
  return Frozen((*outputs, *rest), view)


def views(
  spec: StepSpec,
  student: Variables,
  teacher: Variables | None,
  x: jax.Array,
  train: Sequence[bool],
  frozen: Frozen | None = None,
) -> tuple[View, View | None, tuple[Tree, ...]]:
  """Student's view, teacher's view and the student's batch_stats afterwards.

  Args:
    spec: the phase.
    student: the student's variables.
    teacher: the teacher's; parts before `spec.shared` may be None.
    x: `[batch, height, width, channels]`, normalised images.
    train: per part of the student, whether it runs in train mode.
    frozen: `frozen_outputs` of the images where they are known.
  """
  if frozen is None:
    frozen = frozen_outputs(spec, student, teacher, x)
  if frozen.student:
    x = getattr(frozen.student[-1], 'output', None)
  rest, batch_stats = blocks.run(
    spec.student,
    student,
    x,
    train=train,
    start=len(frozen.student),
    remat=spec.remat,
  )
  student_view = blocks.view([*frozen.student, *rest])
  return student_view, frozen.teacher, batch_stats
