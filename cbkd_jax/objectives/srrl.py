"""SRRL: the student's feature must also please the teacher's classifier.

Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax
Regression Representation Learning", ICLR 2021. A connector (1x1 convolution,
normalisation, ReLU) leads to the teacher's channels; the loss compares the
pooled features and the logits that the teacher's frozen classifier gives.

Two forms are published. SimKD's repository connects the pooled vector. The
authors' code and cls_KD connect the deepest map and pool it then.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.regressors import (
  apply_module,
  batch_norm,
  conv,
  init_module,
)


class Connector(nn.Module):
  """1x1 convolution without bias, normalisation, ReLU; mean over positions.

  Attributes:
    width: output channels.
    axis_name: the replicas' axis.
  """

  width: int
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    x = conv(self.width, name='conv')(x)
    x = nn.relu(batch_norm(train, self.axis_name, name='norm')(x))
    return jnp.mean(x, axis=(1, 2))


def srrl_loss(
  connected: jax.Array,
  teacher: jax.Array,
  connected_logits: jax.Array,
  teacher_logits: jax.Array,
  feature: float = 1.0,
  logits: float = 1.0,
) -> jax.Array:
  """Weighted mean squared differences of features and of logits.

  Args:
    connected: the student's connected feature `[batch, c]`.
    teacher: the teacher's `[batch, c]`.
    connected_logits: the teacher's classifier on the connected feature,
      `[batch, classes]`.
    teacher_logits: `[batch, classes]`.
    feature: weight of the features.
    logits: weight of the logits.

  Returns:
    A scalar.
  """
  of_features = jnp.mean((connected - teacher) ** 2)
  of_logits = jnp.mean((connected_logits - teacher_logits) ** 2)
  return feature * of_features + logits * of_logits


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftmaxRegression(Learned):
  """`srrl(form='vector', feature=1, logits=1)`; the recipe is SimKD's.

  `form='map'` connects the map: the authors train with ce + srrl(form='map'),
  cls_KD with logits=5.
  """

  form: str = 'vector'
  feature: float = 1.0
  logits: float = 1.0

  name: ClassVar[str] = 'srrl'
  paper: ClassVar[str] = (
    'Yang et al., Knowledge Distillation via Softmax Regression '
    'Representation Learning, ICLR 2021'
  )
  recipe: ClassVar[str] = 'ce + kd(temperature=4) + srrl()'
  knowledge: ClassVar[str] = 'feature'
  needs: ClassVar[tuple[str, ...]] = ('teacher_classifier',)

  def __post_init__(self):
    super().__post_init__()
    self.require_choice('form', ('vector', 'map'))
    self.require_from_zero('feature', 'logits')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    if self.form == 'map':
      x = student_view.features[-1]
    else:
      batch, width = student_view.pooled.shape
      x = jax.ShapeDtypeStruct((batch, 1, 1, width), student_view.pooled.dtype)
    connector = Connector(teacher_view.pooled.shape[-1])
    params, stats = init_module(connector, rng, x, train=False)
    return {'params': {'connector': params}, 'state': {'connector': stats}}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    teacher_classifier: Callable[[jax.Array], jax.Array],
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    if self.form == 'map':
      x = student_view.features[-1]
    else:
      x = student_view.pooled[:, None, None]
    connected, stats = apply_module(
      Connector(teacher_view.pooled.shape[-1], self.setting.axis_name),
      variables['params']['connector'],
      variables['state']['connector'],
      x,
      train=True,
    )
    value = srrl_loss(
      connected,
      teacher_view.pooled,
      teacher_classifier(connected),
      teacher_view.logits,
      self.feature,
      self.logits,
    )
    return value, {}, {'connector': stats}
