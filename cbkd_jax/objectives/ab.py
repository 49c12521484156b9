"""AB: the student's neurons are active where the teacher's are.

Heo, Lee, Yun, Choi, "Knowledge Transfer via Distillation of Activation
Boundaries Formed by Hidden Neurons", AAAI 2019 (arXiv:1811.03233); weights of
the layers, and the factor 3/1000, as in the authors' and RepDistiller's code.

The loss only initialises a student, which then trains without it: in
RepDistiller 30 epochs come before the 240 of the training. Here the pre-stage
takes its steps *from* the phase's own, an eighth of them, so that all methods
train equally long.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import (
  ConvRegressor,
  apply_module,
  check_conv_regressor,
  init_module,
)


def ab_loss(
  student: Sequence[jax.Array],
  teacher: Sequence[jax.Array],
  margin: float = 1.0,
) -> jax.Array:
  """Squared distance from the right side of the boundary, by the margin.

  An entry costs max(0, margin - s)^2 where the teacher's neuron is active
  (t > 0), else max(0, margin + s)^2. Layer i of n sums over its entries, per
  example, with weight 2^(i - n + 1) * 3/1000.

  Args:
    student: pre-activation maps `[batch, h, w, c]`, shallowest first.
    teacher: as many, of the same shapes.
    margin: how far beyond the boundary a neuron is to be.

  Returns:
    A scalar.
  """
  total, layers = jnp.float32(0), len(student)
  for i, (ours, theirs) in enumerate(zip(student, teacher, strict=True)):
    signed = jnp.where(theirs > 0, -ours, ours)
    cost = jnp.sum(jax.nn.relu(margin + signed) ** 2) / len(ours)
    total += 2.0 ** (i - layers + 1) * cost * 3 / 1000
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class ActivationBoundaries(Looking, Learned):
  """`ab(margin=1.0, pre_fraction=0.125)`, at every block's end.

  Trains the phase's blocks for `pre_fraction` of its steps and is 0
  afterwards; with `pre_fraction=0` it is a term like others. Maps of
  different shapes are connected by a convolution with batch normalisation;
  those of equal shape are compared as they are, as published.
  """

  margin: float = 1.0
  pre_fraction: float = 0.125

  name: ClassVar[str] = 'ab'
  paper: ClassVar[str] = (
    'Heo et al., Knowledge Transfer via Distillation of Activation Boundaries '
    'Formed by Hidden Neurons, AAAI 2019'
  )
  recipe: ClassVar[str] = 'ce + 1*ab(margin=1.0, pre_fraction=0.125)'
  knowledge: ClassVar[str] = 'feature'
  pre_activations: ClassVar[bool] = True
  prepares: ClassVar[str | None] = 'blocks'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('margin')
    self.require_fraction('pre_fraction')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      if ours.shape[1:] == theirs.shape[1:]:
        continue
      check_conv_regressor(self.name, cut, ours, theirs)
      params[f'cut_{cut}'], state[f'cut_{cut}'] = init_module(
        self._connector(theirs),
        jax.random.fold_in(rng, cut),
        ours,
        train=False,
      )
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    student, teacher, state = [], [], {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      key = f'cut_{cut}'
      if key in variables['params']:
        ours, state[key] = apply_module(
          self._connector(theirs),
          variables['params'][key],
          variables['state'][key],
          ours,
          train=True,
        )
      student.append(ours)
      teacher.append(theirs)
    return ab_loss(student, teacher, self.margin), {}, state

  def pairs(
    self, student_view: View, teacher_view: View
  ) -> list[tuple[int, jax.Array, jax.Array]]:
    """Those of `Looking`; none after the pre-stage."""
    if self.has_pre_stage and not self.setting.preparing:
      return []
    return super().pairs(student_view, teacher_view)

  def _connector(self, teacher: jax.Array) -> ConvRegressor:
    return ConvRegressor(
      width=teacher.shape[-1],
      side=teacher.shape[1],
      use_relu=False,
      axis_name=self.setting.axis_name,
    )
