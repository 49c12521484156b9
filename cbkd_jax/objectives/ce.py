"""Cross-entropy with the labels: the task's own term."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Method


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Mean of -log softmax(logits)[label].

  Args:
    logits: `[batch, classes]`.
    labels: `[batch]` integers.

  Returns:
    A scalar.
  """
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return jnp.mean(losses)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
  """`ce`: mean cross-entropy of the student with the labels."""

  name: ClassVar[str] = 'ce'
  needs: ClassVar[tuple[str, ...]] = ('labels',)
  uses_teacher: ClassVar[bool] = False
  recipe: ClassVar[str] = '1*ce'
  paper: ClassVar[str] = 'cross-entropy with the labels'

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    return cross_entropy(student_view.logits, labels), {}, {}
