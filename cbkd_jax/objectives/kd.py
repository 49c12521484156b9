"""KD: the student's softened predictions follow the teacher's.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531 (2015), section 2.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import Method


def kd_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """T^2 * mean over examples of KL(softmax(t/T) || softmax(s/T)).

  The factor T^2 keeps the gradient's size independent of T (section 2.1).

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`.
    temperature: T > 0.

  Returns:
    A scalar.
  """
  log_p = jax.nn.log_softmax(student_logits / temperature)
  log_q = jax.nn.log_softmax(teacher_logits / temperature)
  kl = jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)
  return temperature**2 * jnp.mean(kl)


@dataclasses.dataclass(frozen=True)
class KnowledgeDistillation(Method):
  """`kd(temperature=4)`; the recipe is RepDistiller's and mdistiller's."""

  temperature: float = 4.0

  recipe: ClassVar[str] = '0.1*ce + 0.9*kd(temperature=4)'
  paper: ClassVar[str] = (
    'Hinton et al., Distilling the Knowledge in a Neural Network, 2015'
  )

  def __post_init__(self):
    if not (self.temperature > 0 and math.isfinite(self.temperature)):
      raise UserError(f'kd.temperature = {self.temperature!r}: must be above 0')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    value = kd_loss(student_view.logits, teacher_view.logits, self.temperature)
    return value, {}, {}
