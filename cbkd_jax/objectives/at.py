"""AT: the student's spatial attention maps follow the teacher's.

Zagoruyko, Komodakis, "Paying More Attention to Attention", ICLR 2017
(arXiv:1612.03928), section 3.1, equation 2. As in RepDistiller the loss is
the *mean* squared difference of the normalised maps, hence the weight 1000.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import flatten, l2_normalize, match_sizes
from cbkd_jax.objectives.places import Looking


def attention(x: jax.Array, power: int) -> jax.Array:
  """Mean over channels of x^power, at norm 1 per example.

  Of x itself, not of |x|: an odd power keeps signs.

  Args:
    x: `[batch, h, w, c]`.
    power: p.

  Returns:
    `[batch, h*w]`.
  """
  return l2_normalize(flatten(jnp.mean(x**power, axis=-1)))


def at_loss(
  student: Sequence[jax.Array], teacher: Sequence[jax.Array], power: int = 2
) -> jax.Array:
  """Sum over layers of the mean squared difference of attention maps.

  Args:
    student: maps `[batch, h, w, c]`.
    teacher: as many maps; the larger of each pair is pooled to the smaller.
    power: p, of the entries before the mean over channels.

  Returns:
    A scalar.
  """
  total = 0.0
  for ours, theirs in zip(student, teacher, strict=True):
    ours, theirs = match_sizes(ours, theirs)
    difference = attention(ours, power) - attention(theirs, power)
    total += jnp.mean(difference**2)
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTransfer(Looking):
  """`at(power=2)`, at every block's end; RepDistiller's weight is 1000."""

  power: int = 2

  name: ClassVar[str] = 'at'
  paper: ClassVar[str] = (
    'Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017'
  )
  recipe: ClassVar[str] = 'ce + 1000*at(power=2)'
  knowledge: ClassVar[str] = 'feature'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('power')

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    value = at_loss(
      self.look(student_view), self.look(teacher_view), self.power
    )
    return value, {}, {}
