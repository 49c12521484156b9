"""NKD: target and normalised non-target cross-entropies with the teacher.

Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge
Distillation: A Unified Approach with Normalized Loss and Customized Soft
Labels", ICCV 2023 (arXiv:2303.13005). As in the authors' code (cls_KD) the
teacher's entropy is not subtracted, so the loss is not 0 where both agree.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.logits import EXCLUDED, is_class
from cbkd_jax.objectives.method import Method


def nkd_loss(
  student_logits: jax.Array,
  teacher_logits: jax.Array,
  labels: jax.Array,
  gamma: float,
  temperature: float,
) -> jax.Array:
  """-mean(q_t log p_t) - gamma T^2 mean(sum of q_i log p_i over the others).

  The target part is at T = 1; the other classes' probabilities are
  normalised among themselves, at T.

  Args:
    student_logits: `[batch, classes]`, giving p.
    teacher_logits: `[batch, classes]`, giving q.
    labels: `[batch]` integers, or `[batch, classes]` soft labels, of which
      the largest is the target.
    gamma: weight of the non-target part.
    temperature: T > 0.

  Returns:
    A scalar.
  """
  if labels.ndim == 2:
    labels = jnp.argmax(labels, axis=-1)
  target = is_class(labels, student_logits)

  def cross_entropy(student, teacher, included):
    q = jnp.where(included, jax.nn.softmax(teacher), 0.0)
    return -jnp.mean(jnp.sum(q * jax.nn.log_softmax(student), axis=-1))

  logits = student_logits, teacher_logits
  others = (jnp.where(target, EXCLUDED, x) / temperature for x in logits)
  non_target = temperature**2 * cross_entropy(*others, ~target)
  return cross_entropy(*logits, target) + gamma * non_target


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalizedKnowledgeDistillation(Method):
  """`nkd(gamma=1.5, temperature=1.0)`, beside the ordinary cross-entropy.

  The defaults are those of cls_KD's loss and of its ImageNet configs of
  convolutional networks; the recipe is its CIFAR-100 config's.
  """

  gamma: float = 1.5
  temperature: float = 1.0

  name: ClassVar[str] = 'nkd'
  paper: ClassVar[str] = (
    'Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: '
    'A Unified Approach with Normalized Loss and Customized Soft Labels, '
    'ICCV 2023'
  )
  recipe: ClassVar[str] = 'ce + nkd(gamma=3.5, temperature=3)'
  needs: ClassVar[tuple[str, ...]] = ('labels',)

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('gamma')
    self.require_positive('temperature')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits = student_view.logits, teacher_view.logits
    return nkd_loss(*logits, labels, self.gamma, self.temperature), {}, {}
