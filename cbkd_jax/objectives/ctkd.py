"""CTKD: KD whose temperature learns to make the task harder.

Li, Li, Yang, Zhao, Song, Luo, Li, Yang, "Curriculum Temperature for Knowledge
Distillation", AAAI 2023 (arXiv:2211.16231); the global temperature.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.kd import kd_loss
from cbkd_jax.objectives.method import Learned


def scale_gradient(x: jax.Array, factor: float | jax.Array) -> jax.Array:
  """x, through which gradients pass multiplied by `factor`.

  Args:
    x: any array.
    factor: a scalar.

  Returns:
    An array like x, of the same values.
  """
  constant = jax.lax.stop_gradient(x)
  return constant + factor * (x - constant)


def ctkd_temperature(
  global_t: jax.Array,
  factor: float | jax.Array,
  t_start: float = 1.0,
  t_end: float = 20.0,
) -> jax.Array:
  """t_start + t_end * sigmoid(global_t), below t_start + t_end.

  Args:
    global_t: the learned scalar.
    factor: its gradient's, lambda in the paper; at -1 it ascends.
    t_start: the smallest temperature.
    t_end: how much larger it can become.

  Returns:
    A scalar.
  """
  return t_start + t_end * jax.nn.sigmoid(scale_gradient(global_t, factor))


def cosine_decay(
  epoch: jax.Array, largest: float, smallest: float, epochs: float
) -> jax.Array | float:
  """From `largest` at epoch 0 along half a cosine to `smallest` at `epochs`.

  Args:
    epoch: the published one, a scalar.
    largest: where it starts.
    smallest: where it ends and stays.
    epochs: how long it takes; 0 is at its end from the first.

  Returns:
    A scalar.
  """
  if not epochs:
    return smallest
  progress = jnp.clip(epoch / epochs, 0.0, 1.0)
  share = (jnp.cos(math.pi * progress) + 1) / 2
  return share * (largest - smallest) + smallest


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurriculumTemperature(Learned):
  """`ctkd(t_start=1.0, t_end=20.0)`: kd with a temperature that it learns.

  The temperature's gradient is multiplied by lambda, which goes from
  `lambda_max` to `lambda_min` in `decay_epochs` published epochs: at first it
  rests, then it climbs the loss that the student descends. The recipe is that
  of the published CIFAR-100 script.
  """

  t_start: float = 1.0
  t_end: float = 20.0
  lambda_max: float = 0.0
  lambda_min: float = -1.0
  decay_epochs: float = 10.0

  name: ClassVar[str] = 'ctkd'
  paper: ClassVar[str] = (
    'Li et al., Curriculum Temperature for Knowledge Distillation, AAAI 2023'
  )
  recipe: ClassVar[str] = '0.1*ce + 0.9*ctkd(t_start=1, t_end=20)'
  needs: ClassVar[tuple[str, ...]] = ('epoch',)

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('t_start')
    self.require_from_zero('t_end', 'decay_epochs')
    if not math.isfinite(self.lambda_max):
      self.fail('lambda_max', 'finite')
    if not -math.inf < self.lambda_min <= self.lambda_max:
      self.fail('lambda_min', f'at most lambda_max = {self.lambda_max}')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    return {'params': {'global_t': jnp.ones((), jnp.float32)}}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    epoch: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    factor = cosine_decay(
      epoch, self.lambda_max, self.lambda_min, self.decay_epochs
    )
    temperature = ctkd_temperature(
      variables['params']['global_t'], factor, self.t_start, self.t_end
    )
    value = kd_loss(student_view.logits, teacher_view.logits, temperature)
    return value, {'temperature': temperature}, {}
