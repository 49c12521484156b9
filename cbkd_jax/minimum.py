"""The fewest operations that a training step can take, by arithmetic.

Counted are the multiply-adds of convolutions and dense layers, 2 operations
each, positions in the padding not among them: what XLA counts for them. What
is left out (normalisation, activations, the optimiser, the objective) is a few
percent of a network's work.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from cbkd_jax import blocks
from cbkd_jax.spec import StepSpec


def step_flops(spec: StepSpec, cached: bool = False) -> float:
  """Operations per example of a phase's step.

  The frozen prefix forward once, the teacher's rest forward, what trains
  three times its forward pass (forward, gradients of activations and of
  parameters), and what lies above it twice (forward, gradients of
  activations); all of it twice for objectives that look at two views.

  Args:
    spec: the phase.
    cached: whether what the phase can't change is looked up.

  Returns:
    2 per multiply-add.
  """
  student = part_flops(spec.student.parts, spec.image_shape)
  own = [
    flops * (0 if i < spec.frozen and cached else _passes(spec, i))
    for i, flops in enumerate(student)
  ]
  teacher = 0.0
  if spec.teacher is not None and not cached:
    parts = part_flops(spec.teacher.parts, spec.image_shape)
    teacher = sum(parts[spec.shared :])
  looks = 2 if 'second_view' in spec.objective.needs else 1
  return looks * (sum(own) + teacher)


def _passes(spec: StepSpec, part: int) -> int:
  if part < spec.frozen:
    return 1
  return 3 if spec.trained[part] else 2


def part_flops(
  parts: Sequence[Any], image_shape: Sequence[int]
) -> tuple[float, ...]:
  """Operations of each part's forward pass, per example.

  Args:
    parts: a network's.
    image_shape: (height, width, channels).
  """
  shape, found = (1, *image_shape), []
  for part in parts:
    found.append(_forward_flops(part, shape))
    shape = blocks.part_shapes(part, shape)[1]
  return tuple(found)


@functools.cache
def _forward_flops(part: Any, shape: tuple[int, ...]) -> float:
  variables, _ = blocks.part_shapes(part, shape)
  run = jax.make_jaxpr(lambda v, x: part.apply(v, x, train=False))
  jaxpr = run(variables, jax.ShapeDtypeStruct(shape, jnp.float32))
  return _count(jaxpr.jaxpr)


def _count(jaxpr: Any) -> float:
  total = 0.0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == 'conv_general_dilated':
      total += _convolution(equation)
    elif name == 'dot_general':
      total += _product(equation)
    for inner in equation.params.values():
      if isinstance(inner, jax.extend.core.ClosedJaxpr):
        total += _count(inner.jaxpr)
  return total


def _convolution(equation: Any) -> float:
  """2 x batch x output channels x input channels x pairs of positions."""
  params = equation.params
  image, kernel = (v.aval.shape for v in equation.invars)
  numbers = params['dimension_numbers']
  pairs = 1
  for i, (image_axis, kernel_axis) in enumerate(
    zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:])
  ):
    pairs *= _pairs(
      image[image_axis],
      kernel[kernel_axis],
      params['window_strides'][i],
      params['padding'][i],
      params['lhs_dilation'][i],
      params['rhs_dilation'][i],
    )
  out_channels, in_channels = (kernel[axis] for axis in numbers.rhs_spec[:2])
  batch = image[numbers.lhs_spec[0]]
  return 2.0 * batch * out_channels * in_channels * pairs


def _pairs(
  size: int,
  kernel: int,
  stride: int,
  padding: tuple[int, int],
  dilation: int,
  kernel_dilation: int,
) -> int:
  """Along one axis, pairs of an output and a tap that meet an input."""
  spread = (size - 1) * dilation + 1
  reach = (kernel - 1) * kernel_dilation + 1
  outputs = (spread + sum(padding) - reach) // stride + 1
  found = 0
  for output in range(outputs):
    for tap in range(kernel):
      at = output * stride + tap * kernel_dilation - padding[0]
      found += 0 <= at < spread and at % dilation == 0
  return found


def _product(equation: Any) -> float:
  (contracted, _), _ = equation.params['dimension_numbers']
  left = equation.invars[0].aval.shape
  depth = math.prod(left[axis] for axis in contracted)
  return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
