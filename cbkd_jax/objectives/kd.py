"""KD: the student's softened predictions follow the teacher's.

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531 (2015), section 2. Logit standardisation: Sun, Ren, Li, Wang,
Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024
(arXiv:2403.01427), algorithm 1.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Method


def kd_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  temperature: float | jax.Array,
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


def standardize(logits: jax.Array) -> jax.Array:
  """(z - mean) / (std + 1e-7) over the classes, std with C - 1.

  A row of equal logits has a finite gradient here; the published code's is
  not a number.

  Args:
    logits: `[batch, classes]`.

  Returns:
    An array like it.
  """
  centred = logits - jnp.mean(logits, axis=-1, keepdims=True)
  squared = jnp.sum(centred**2, axis=-1, keepdims=True)
  variance = squared / (logits.shape[-1] - 1)
  # Guarded inside the root: its derivative at 0 is infinite.
  safe = jnp.where(variance > 0, variance, 1.0)
  std = jnp.where(variance > 0, jnp.sqrt(safe), 0.0)
  return centred / (1e-7 + std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowledgeDistillation(Method):
  """`kd(temperature=4)`; the recipe is RepDistiller's and mdistiller's.

  `standardize=True` standardises both sides' logits first; the published
  weights are then 0.1*ce + 9*kd(temperature=2, standardize=True).
  """

  temperature: float = 4.0
  standardize: bool = False

  name: ClassVar[str] = 'kd'
  paper: ClassVar[str] = (
    'Hinton et al., Distilling the Knowledge in a Neural Network, 2015'
  )
  recipe: ClassVar[str] = '0.1*ce + 0.9*kd(temperature=4)'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('temperature')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits = student_view.logits, teacher_view.logits
    if self.standardize:
      logits = tuple(map(standardize, logits))
    return kd_loss(*logits, self.temperature), {}, {}
