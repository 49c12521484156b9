"""WSLD: soft labels weigh more where the student lags behind the teacher.

Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang, "Rethinking Soft Labels for
Knowledge Distillation: A Bias-Variance Tradeoff Perspective", ICLR 2021
(arXiv:2102.00650). As in the authors' code the teacher's entropy is not
subtracted: the loss is a cross-entropy.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Method


def wsld_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  alpha: float,
  temperature: float,
) -> jax.Array:
  """alpha T^2 * mean(w * cross-entropy with the teacher at T).

  w = 1 - exp(-CE_student / (CE_teacher + 1e-7)) of the cross-entropies with
  the label, a constant for the gradient.

  Args:
    student_logits: `[batch, classes]`.
    teacher_logits: `[batch, classes]`.
    labels: `[batch]` integers.
    alpha: the weight.
    temperature: T > 0.

  Returns:
    A scalar.
  """
  ours, theirs = (
    optax.softmax_cross_entropy_with_integer_labels(x, labels)
    for x in (student_logits, teacher_logits)
  )
  weight = jax.lax.stop_gradient(-jnp.expm1(-ours / (theirs + 1e-7)))
  soft = -jnp.sum(
    jax.nn.softmax(teacher_logits / temperature)
    * jax.nn.log_softmax(student_logits / temperature),
    axis=-1,
  )
  return alpha * temperature**2 * jnp.mean(weight * soft)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedSoftLabelDistillation(Method):
  """`wsld(temperature=4.0, alpha=2.25)`, as cls_KD has it on CIFAR-100.

  On ImageNet the authors have temperature=2 and alpha=2.5.
  """

  temperature: float = 4.0
  alpha: float = 2.25

  name: ClassVar[str] = 'wsld'
  paper: ClassVar[str] = (
    'Zhou et al., Rethinking Soft Labels for Knowledge Distillation: A '
    'Bias-Variance Tradeoff Perspective, ICLR 2021'
  )
  recipe: ClassVar[str] = 'ce + wsld(temperature=4, alpha=2.25)'
  needs: ClassVar[tuple[str, ...]] = ('labels',)

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('temperature')
    self.require_from_zero('alpha')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits = student_view.logits, teacher_view.logits
    return wsld_loss(*logits, labels, self.alpha, self.temperature), {}, {}
