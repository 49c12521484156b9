"""NST: the student's channels select the same regions as the teacher's.

Huang, Wang, "Like What You Like: Knowledge Distill via Neuron Selectivity
Transfer", arXiv:1707.01219 (2017), with the squared inner product as kernel:
a maximum mean discrepancy between the sets of channels, each channel a vector
over positions.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import l2_normalize, match_sizes
from cbkd_jax.objectives.places import Looking


def selectivity(x: jax.Array) -> jax.Array:
  """Channels at norm 1 over positions, or all zero.

  Args:
    x: `[batch, h, w, c]`.

  Returns:
    `[batch, h*w, c]`.
  """
  return l2_normalize(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1)


def mean_kernel(a: jax.Array, b: jax.Array) -> jax.Array:
  """Mean over examples and pairs of channels of (a_i . b_j)^2.

  Args:
    a: `[batch, positions, channels]`.
    b: the same with its own channels.

  Returns:
    A scalar.
  """
  products = jnp.einsum('bpi,bpj->bij', a, b, precision='highest')
  return jnp.mean(products**2)


def nst_loss(
  student: Sequence[jax.Array], teacher: Sequence[jax.Array]
) -> jax.Array:
  """Sum over layers of the discrepancy of the two sets of channels.

  Args:
    student: maps `[batch, h, w, c]`.
    teacher: as many maps; the larger of each pair is pooled to the smaller.

  Returns:
    A scalar.
  """
  total = 0.0
  for ours, theirs in zip(student, teacher, strict=True):
    s, t = map(selectivity, match_sizes(ours, theirs))
    total += mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t)
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class NeuronSelectivityTransfer(Looking):
  """`nst()`, at every block's end; RepDistiller's weight is 50."""

  name: ClassVar[str] = 'nst'
  paper: ClassVar[str] = (
    'Huang & Wang, Like What You Like: Knowledge Distill via Neuron '
    'Selectivity Transfer, 2017'
  )
  recipe: ClassVar[str] = 'ce + 50*nst'
  knowledge: ClassVar[str] = 'feature'

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    return nst_loss(self.look(student_view), self.look(teacher_view)), {}, {}
