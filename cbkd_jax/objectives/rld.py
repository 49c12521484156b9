"""RLD: the teacher's confidence, and its opinion on classes below the label.

Sun, Chen, Lyu, Chen, Chen, Wang, "Knowledge Distillation with Refined Logits",
ICCV 2025 (arXiv:2408.07703). The published code takes the logarithm of summed
probabilities and is not a number where they underflow; here that part stays in
log space and is finite there, and equal elsewhere.
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


def rld_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  alpha: float,
  beta: float,
  temperature: float,
  alpha_temperature: float,
) -> jax.Array:
  """alpha * KL(confidences) + beta * KL(among classes below the label).

  The student's probability of the label follows the teacher's of its own
  first choice, at the temperature of alpha. The second part keeps the classes
  whose teacher's logit is smaller than that of the label (a row without any
  counts 0). Each part is multiplied by its temperature squared.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`.
    labels: `[batch]` integers.
    alpha: weight of the first part (sample confidence).
    beta: weight of the second part (masked correlation).
    temperature: of the second part.
    alpha_temperature: of the first part.

  Returns:
    A scalar.
  """
  target = is_class(labels, student_logits)
  first = is_class(jnp.argmax(teacher_logits, axis=-1), teacher_logits)
  confidence = alpha_temperature**2 * two_way_kl(
    log_odds(student_logits / alpha_temperature, target),
    log_odds(teacher_logits / alpha_temperature, first),
  )
  of_label = jnp.sum(
    jnp.where(target, teacher_logits, 0.0), axis=-1, keepdims=True
  )
  masked = teacher_logits >= of_label
  kept = (
    jnp.where(masked, EXCLUDED, x) for x in (student_logits, teacher_logits)
  )
  return alpha * confidence + beta * kd_loss(*kept, temperature)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefinedLogitDistillation(Method):
  """`rld(alpha=1.0, beta=8.0, temperature=4.0, alpha_temperature=1.0)`.

  The loss grows in over `warmup` published epochs. `standardize=True`
  standardises both sides' logits first.
  """

  alpha: float = 1.0
  beta: float = 8.0
  temperature: float = 4.0
  alpha_temperature: float = 1.0
  warmup: float = 20.0
  standardize: bool = False

  name: ClassVar[str] = 'rld'
  paper: ClassVar[str] = (
    'Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025'
  )
  recipe: ClassVar[str] = (
    'ce + rld(alpha=1, beta=8, temperature=4, alpha_temperature=1, warmup=20)'
  )
  needs: ClassVar[tuple[str, ...]] = ('labels', 'epoch')

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('alpha', 'beta', 'warmup')
    self.require_positive('temperature', 'alpha_temperature')

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
    value = rld_loss(
      *logits,
      labels,
      self.alpha,
      self.beta,
      self.temperature,
      self.alpha_temperature,
    )
    return warm_up(epoch, self.warmup) * value, {}, {}
