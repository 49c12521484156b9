"""DKD: KD taken apart into target and non-target classes, weighted each.

Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022
(arXiv:2203.08679). The published code takes the logarithm of summed
probabilities and is not a number where they underflow; here everything stays
in log space and is finite there, and equal elsewhere.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.kd import kd_loss, standardize
from cbkd_jax.objectives.logits import (
  EXCLUDED,
  is_class,
  log_odds,
  two_way_kl,
)
from cbkd_jax.objectives.method import Method, warm_up


def dkd_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  alpha: float,
  beta: float,
  temperature: float | jax.Array,
) -> jax.Array:
  """alpha * KL(target or not) + beta * KL(among the others), times T^2.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`.
    labels: `[batch]` integers.
    alpha: weight of the target part (TCKD).
    beta: weight of the non-target part (NCKD).
    temperature: T > 0, of both parts.

  Returns:
    A scalar.
  """
  target = is_class(labels, student_logits)
  logits = student_logits, teacher_logits
  tckd = temperature**2 * two_way_kl(
    *(log_odds(x / temperature, target) for x in logits)
  )
  others = (jnp.where(target, EXCLUDED, x) for x in logits)
  return alpha * tckd + beta * kd_loss(*others, temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoupledKnowledgeDistillation(Method):
  """`dkd(alpha=1.0, beta=8.0, temperature=4.0, warmup=20.0)`.

  The loss grows in over `warmup` published epochs. mdistiller publishes
  another beta for each pair of CIFAR-100 networks: mostly 8 (the default of
  its code), 6 or 2. `standardize=True` standardises both sides' logits first.
  """

  alpha: float = 1.0
  beta: float = 8.0
  temperature: float = 4.0
  warmup: float = 20.0
  standardize: bool = False

  name: ClassVar[str] = 'dkd'
  paper: ClassVar[str] = (
    'Zhao et al., Decoupled Knowledge Distillation, CVPR 2022'
  )
  recipe: ClassVar[str] = 'ce + dkd(alpha=1, beta=8, temperature=4, warmup=20)'
  needs: ClassVar[tuple[str, ...]] = ('labels', 'epoch')

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('alpha', 'beta', 'warmup')
    self.require_positive('temperature')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
    epoch: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits = student_view.logits, teacher_view.logits
    if self.standardize:
      logits = tuple(map(standardize, logits))
    value = dkd_loss(*logits, labels, self.alpha, self.beta, self.temperature)
    return warm_up(epoch, self.warmup) * value, {}, {}
