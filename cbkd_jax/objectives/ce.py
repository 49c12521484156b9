"""Cross-entropy with the labels: the task's own term."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Method


def cross_entropy(
  logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0
) -> jax.Array:
  """Mean of -log softmax(logits)[label], smoothed as in torch.

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]` integers.
    label_smoothing: share of the mean over all classes in the place of the
      label.

  Returns:
    A scalar.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  loss = jnp.mean(losses)
  if not label_smoothing:
    return loss
  everywhere = -jnp.mean(jax.nn.log_softmax(logits))
  return (1 - label_smoothing) * loss + label_smoothing * everywhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
  """`ce`: mean cross-entropy of the student with the labels.

  Of a mixed image it is the mean over its two labels, by their shares.

  Attributes:
    label_smoothing: 0 to below 1 (Szegedy et al., Rethinking the Inception
      Architecture for Computer Vision, CVPR 2016).
  """

  label_smoothing: float = 0.0

  name: ClassVar[str] = 'ce'
  needs: ClassVar[tuple[str, ...]] = ('labels', 'mixed')
  uses_teacher: ClassVar[bool] = False
  recipe: ClassVar[str] = '1*ce'
  paper: ClassVar[str] = 'cross-entropy with the labels'

  def __post_init__(self):
    super().__post_init__()
    self.require_fraction('label_smoothing')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
    mixed: tuple[jax.Array, jax.Array] | None,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    logits, smoothing = student_view.logits, self.label_smoothing
    loss = cross_entropy(logits, labels, smoothing)
    if mixed is not None:
      others, share = mixed
      other = cross_entropy(logits, others, smoothing)
      loss = share * loss + (1 - share) * other
    return loss, {}, {}
