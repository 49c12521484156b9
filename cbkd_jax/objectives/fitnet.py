"""FitNet: a regressor of the student's middle map follows the teacher's.

Romero, Ballas, Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep
Nets", ICLR 2015 (arXiv:1412.6550), section 2.2. The paper trains on the hint
first and distils afterwards; as in RepDistiller and mdistiller the hint is a
term beside the cross-entropy, all the time, and its regressor is a
convolution with batch normalisation and a ReLU. Where a teacher's blocks end
without a ReLU its maps have negative entries, which the regressor can't reach.
"""

import dataclasses
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


def hint_loss(regressed: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean squared difference over all entries.

  Args:
    regressed: the regressed student map `[batch, h, w, c]`.
    teacher: the teacher's map, of the same shape.

  Returns:
    A scalar.
  """
  return jnp.mean((regressed - teacher) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitNet(Looking, Learned):
  """`fitnet()`, at the middle block; several places are summed."""

  at: str | int | tuple = 'middle'

  name: ClassVar[str] = 'fitnet'
  paper: ClassVar[str] = (
    'Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015'
  )
  recipe: ClassVar[str] = 'ce + 100*fitnet()'
  knowledge: ClassVar[str] = 'feature'

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      check_conv_regressor(self.name, cut, ours, theirs)
      params[f'cut_{cut}'], state[f'cut_{cut}'] = init_module(
        self._regressor(theirs),
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
    total, state = jnp.float32(0), {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      key = f'cut_{cut}'
      regressed, state[key] = apply_module(
        self._regressor(theirs),
        variables['params'][key],
        variables['state'][key],
        ours,
        train=True,
      )
      total += hint_loss(regressed, theirs)
    return total, {}, state

  def _regressor(self, teacher: jax.Array) -> ConvRegressor:
    return ConvRegressor(
      width=teacher.shape[-1],
      side=teacher.shape[1],
      axis_name=self.setting.axis_name,
    )
