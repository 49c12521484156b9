"""OFD: pre-activations follow the teacher's where these matter behind a ReLU.

Heo, Kim, Yun, Park, Kwak, Choi, "A Comprehensive Overhaul of Feature
Distillation", ICCV 2019 (arXiv:1904.01866): margin ReLU and partial L2
distance, as in mdistiller. A teacher's channel of scale 0 has a finite margin
here; there it is a division by zero.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.scipy.stats import norm

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import adaptive_average_pool
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import (
  apply_module,
  batch_norm,
  conv,
  init_module,
)


class Connector(nn.Module):
  """A 1x1 convolution without bias and batch normalisation.

  Attributes:
    width: output channels.
    axis_name: the replicas' axis.
  """

  width: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(self.width, name='conv')(x)
    return batch_norm(train, self.axis_name, name='norm')(x)


def margin(scale: jax.Array, bias: jax.Array) -> jax.Array:
  """The mean of a channel's negative pre-activations, were they Gaussian.

  Where fewer than 0.001 of them would be negative, -3 standard deviations.

  Args:
    scale: `[c]`, of the normalisation: +- the standard deviation.
    bias: `[c]`, the mean.

  Returns:
    `[c]` float32, at most 0; constant for the differentiation.
  """
  scale, bias = jax.lax.stop_gradient((jnp.abs(scale), bias))
  # A channel of scale 0 has the limit: min(bias, 0).
  ratio = bias / jnp.maximum(scale, jnp.finfo(scale.dtype).tiny)
  share = norm.cdf(-ratio)
  is_enough = share > 0.001
  safe = jnp.where(is_enough, share, 1.0)
  mean = bias - scale * norm.pdf(ratio) / safe
  return jnp.where(is_enough, mean, -3 * scale).astype(jnp.float32)


def ofd_loss(
  student: jax.Array, teacher: jax.Array, margins: jax.Array
) -> jax.Array:
  """Partial L2 distance to the margin ReLU of the teacher, per example.

  The student is drawn to max(t, margin), but where that is not positive only
  from above: anything below it is as good.

  Args:
    student: the connected pre-activations `[batch, h, w, c]`.
    teacher: the teacher's, of the same shape.
    margins: `[c]`, at most 0.

  Returns:
    A scalar: summed over an example's entries.
  """
  target = jnp.maximum(teacher, margins.reshape(1, 1, 1, -1))
  counts = (teacher > 0) | (student > target)
  cost = jnp.where(counts, (student - target) ** 2, 0.0)
  return jnp.sum(cost) / len(student)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Overhaul(Looking, Learned):
  """`ofd()`, at every block's end; block i of n has weight 2^(i - n + 1)."""

  name: ClassVar[str] = 'ofd'
  paper: ClassVar[str] = (
    'Heo et al., A Comprehensive Overhaul of Feature Distillation, ICCV 2019'
  )
  recipe: ClassVar[str] = 'ce + 0.001*ofd()'
  knowledge: ClassVar[str] = 'feature'
  needs: ClassVar[tuple[str, ...]] = ('teacher_norms',)
  pre_activations: ClassVar[bool] = True

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      params[f'cut_{cut}'], state[f'cut_{cut}'] = init_module(
        self._connector(theirs),
        jax.random.fold_in(rng, cut),
        ours,
        train=False,
      )
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    teacher_norms: Sequence[tuple[jax.Array, jax.Array]],
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    total, state = jnp.float32(0), {}
    pairs = self.pairs(student_view, teacher_view)
    for i, (cut, ours, theirs) in enumerate(pairs):
      key = f'cut_{cut}'
      connected, state[key] = apply_module(
        self._connector(theirs),
        variables['params'][key],
        variables['state'][key],
        ours,
        train=True,
      )
      theirs = adaptive_average_pool(theirs, ours.shape[1:3])
      value = ofd_loss(connected, theirs, margin(*teacher_norms[cut]))
      total += value / 2 ** (len(pairs) - i - 1)
    return total, {}, state

  def _connector(self, teacher: jax.Array) -> Connector:
    return Connector(teacher.shape[-1], self.setting.axis_name)
