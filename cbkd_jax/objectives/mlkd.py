"""MLKD: predictions alike by example, over the batch and over the classes.

Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023; with standardised
logits Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge
Distillation", CVPR 2024 (arXiv:2403.01427).

This is the loss of their published code, the same in both, which differs from
the paper's formulas:
- its masks, meant to choose examples (or classes) that the teacher is least
  sure of, multiply whole sums: by the share of those chosen, about a half;
- of its terms on the strongly augmented view, those at temperatures 2 and 6
  look at the weakly augmented one;
- its relations of the strong view do not enter the loss.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.ce import cross_entropy
from cbkd_jax.objectives.kd import kd_loss, standardize
from cbkd_jax.objectives.method import BatchWise


def class_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """Squared distance of the classes' Gram matrices, over their number.

  Args:
    student_logits: `[batch, classes]`; the matrices are P^T P of the
      probabilities P at T.
    teacher_logits: likewise.
    temperature: T > 0.

  Returns:
    A scalar.
  """
  p, q = (
    jax.nn.softmax(x / temperature) for x in (student_logits, teacher_logits)
  )
  return jnp.sum((q.T @ q - p.T @ p) ** 2) / p.shape[1]


def batch_loss(
  student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> jax.Array:
  """Squared distance of the examples' Gram matrices, over their number.

  Args:
    student_logits: `[batch, classes]`; the matrices are P P^T.
    teacher_logits: likewise.
    temperature: T > 0.

  Returns:
    A scalar.
  """
  p, q = (
    jax.nn.softmax(x / temperature) for x in (student_logits, teacher_logits)
  )
  return jnp.sum((q @ q.T - p @ p.T) ** 2) / p.shape[0]


def mlkd_terms(
  weak: tuple[jax.Array, jax.Array],
  strong: tuple[jax.Array, jax.Array],
  temperature: float,
  use_standardize: bool = False,
) -> dict[str, jax.Array]:
  """The distillation terms, each a sum over temperatures T, 3, 5, 2 and 6.

  Args:
    weak: (student's, teacher's) logits `[batch, classes]` of the weakly
      augmented examples.
    strong: those of the strongly augmented ones.
    temperature: T > 0.
    use_standardize: whether the examples' term standardises the logits.

  Returns:
    Scalars 'examples', 'classes' and 'batch'.
  """
  sure = jax.nn.softmax(jax.lax.stop_gradient(weak[1]))
  share_of_examples = _share_up_to_median(jnp.max(sure, axis=1))
  share_of_classes = _share_up_to_median(jnp.sum(sure, axis=0))
  temperatures = (temperature, 3.0, 5.0, 2.0, 6.0)

  def total(loss, logits, chosen=temperatures):
    return sum(loss(*logits, t) for t in chosen)

  classes = share_of_classes * total(class_loss, weak)
  batch = share_of_examples * total(batch_loss, weak)
  if use_standardize:
    weak, strong = (tuple(map(standardize, x)) for x in (weak, strong))
  examples = share_of_examples * total(kd_loss, weak)
  examples += total(kd_loss, strong, temperatures[:3])
  examples += total(kd_loss, weak, temperatures[3:])
  return {'examples': examples, 'classes': classes, 'batch': batch}


def _share_up_to_median(x: jax.Array) -> jax.Array:
  return jnp.mean((x <= jnp.median(x)).astype(x.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiLevelDistillation(BatchWise):
  """`mlkd(temperature=4.0, ce_weight=0.1, kd_weight=0.9)`: the whole loss.

  The cross-entropy is of both views, so it is part of the method. What the
  paper augments strongly is here a second draw of the run's augmentation. The
  published weights with `standardize=True` are kd_weight=9 and temperature=2.
  """

  temperature: float = 4.0
  ce_weight: float = 0.1
  kd_weight: float = 0.9
  standardize: bool = False

  name: ClassVar[str] = 'mlkd'
  paper: ClassVar[str] = 'Jin et al., Multi-Level Logit Distillation, CVPR 2023'
  recipe: ClassVar[str] = '1*mlkd(temperature=4, ce_weight=0.1, kd_weight=0.9)'
  needs: ClassVar[tuple[str, ...]] = ('labels', 'second_view')

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('temperature')
    self.require_from_zero('ce_weight', 'kd_weight')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
    second_view: tuple[View, View],
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    weak = student_view.logits, teacher_view.logits
    strong = tuple(view.logits for view in second_view)
    terms = mlkd_terms(weak, strong, self.temperature, self.standardize)
    labelled = sum(cross_entropy(x[0], labels) for x in (weak, strong))
    value = self.ce_weight * labelled + self.kd_weight * sum(terms.values())
    return value, {'labels': labelled, **terms}, {}
