"""VID: a variational bound on the information the student has of the teacher.

Ahn, Hu, Damianou, Lawrence, Dai, "Variational Information Distillation for
Knowledge Transfer", CVPR 2019 (arXiv:1904.05835), equations 4 to 6; without
the constant log(2 pi)/2, as in RepDistiller.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import match_sizes
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import conv, init_module


class Regressor(nn.Module):
  """1x1 - ReLU - 1x1 - ReLU - 1x1 convolutions without biases.

  Attributes:
    width: the teacher's channels.
    mid: the inner channels.
  """

  width: int
  mid: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = nn.relu(conv(self.mid, name='conv1')(x))
    x = nn.relu(conv(self.mid, name='conv2')(x))
    return conv(self.width, name='conv3')(x)


def initial_log_scale(variance: float, epsilon: float) -> float:
  """The log scale at which `vid_loss` has a given variance.

  Args:
    variance: above epsilon.
    epsilon: the smallest one.

  Returns:
    A number.
  """
  return math.log(math.expm1(variance - epsilon))


def vid_loss(
  predicted: jax.Array,
  teacher: jax.Array,
  log_scale: jax.Array,
  epsilon: float,
) -> jax.Array:
  """Mean of (squared error / variance + log variance) / 2.

  Args:
    predicted: the regressed student map `[batch, h, w, c]`.
    teacher: the teacher's map, of the same shape.
    log_scale: `[c]`; a channel's variance is log(1 + exp(.)) + epsilon.
    epsilon: the smallest variance.

  Returns:
    A scalar; may be negative.
  """
  variance = jax.nn.softplus(log_scale) + epsilon
  variance = variance.reshape(1, 1, 1, -1)
  squared = (predicted - teacher) ** 2
  return 0.5 * jnp.mean(squared / variance + jnp.log(variance))


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariationalInformationDistillation(Looking, Learned):
  """`vid(variance=5.0, epsilon=1e-5)`, at every block's end.

  `variance` is the initial one. The regressor's inner width is the teacher's.
  The log scales are trained, as in RepDistiller; mdistiller does not hand them
  to its optimiser.
  """

  variance: float = 5.0
  epsilon: float = 1e-5

  name: ClassVar[str] = 'vid'
  paper: ClassVar[str] = (
    'Ahn et al., Variational Information Distillation for Knowledge '
    'Transfer, CVPR 2019'
  )
  recipe: ClassVar[str] = 'ce + vid(variance=5.0)'
  knowledge: ClassVar[str] = 'feature'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('epsilon')
    if not self.epsilon < self.variance < 100:
      self.fail('variance', f'above epsilon = {self.epsilon} and below 100')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params = {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      width = theirs.shape[-1]
      key = jax.random.fold_in(rng, cut)
      regressor, _ = init_module(Regressor(width, width), key, ours)
      scale = initial_log_scale(self.variance, self.epsilon)
      params[f'cut_{cut}'] = {
        'regressor': regressor,
        'log_scale': jnp.full((width,), scale, jnp.float32),
      }
    return {'params': params}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    total = jnp.float32(0)
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      params = variables['params'][f'cut_{cut}']
      width = theirs.shape[-1]
      ours, theirs = match_sizes(ours, theirs)
      predicted = Regressor(width, width).apply(
        {'params': params['regressor']}, ours
      )
      total += vid_loss(predicted, theirs, params['log_scale'], self.epsilon)
    return total, {}, {}
