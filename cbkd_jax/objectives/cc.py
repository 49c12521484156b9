"""CC: the errors on one example and on the next, multiplied.

Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019
(arXiv:1904.01802), in the form that RepDistiller gave it and later work
compares with: both networks' features are embedded linearly, and the absolute
errors of consecutive examples are multiplied. It is 0 where the embeddings
agree; the paper's loss compares kernel matrices instead.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.models import layers
from cbkd_jax.objectives.maps import absolute, flatten
from cbkd_jax.objectives.method import BatchWise, Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import init_module


class Embedding(nn.Module):
  """A linear layer on flattened features, drawn as torch draws one.

  Attributes:
    dimension: of the embedding.
  """

  dimension: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = flatten(x)
    bound = 1 / math.sqrt(x.shape[-1])

    def draw_bias(key, shape, dtype):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(
      self.dimension,
      kernel_init=layers.DENSE_INIT,
      bias_init=draw_bias,
      name='linear',
    )(x)


def cc_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean over i of the inner product of |s_i - t_i| and |s_i+1 - t_i+1|.

  Depends on the order of the batch.

  Args:
    student: embeddings `[batch, dimension]`.
    teacher: likewise.

  Returns:
    A scalar; 0 for a single example, which has no successor.
  """
  errors = absolute(student - teacher)
  products = jnp.sum(errors[:-1] * errors[1:], axis=1)
  return jnp.sum(products) / max(1, products.shape[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorrelationCongruence(Looking, Learned, BatchWise):
  """`cc(dimension=128)`, on the pooled vector; RepDistiller's weight is 0.02.

  As there, the teacher's embedding is trained too.
  """

  dimension: int = 128
  at: str | int | tuple = 'pooled'

  name: ClassVar[str] = 'cc'
  paper: ClassVar[str] = (
    'Peng et al., Correlation Congruence for Knowledge Distillation, ICCV 2019'
  )
  recipe: ClassVar[str] = 'ce + 0.02*cc(dimension=128)'
  knowledge: ClassVar[str] = 'relation'
  least_examples: ClassVar[int] = 2
  may_pool: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('dimension')

  @property
  def _keys(self) -> tuple[str, ...]:
    # Of the embeddings, one pair for each place that `look` looks at.
    return tuple(f'cut_{i}' for i in self.places) or ('pooled',)

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    module, params = Embedding(self.dimension), {}
    for i, (key, *pair) in enumerate(
      zip(self._keys, self.look(student_view), self.look(teacher_view))
    ):
      rngs = jax.random.split(jax.random.fold_in(rng, i))
      params[key] = {
        name: init_module(module, own, x)[0]
        for name, own, x in zip(('embed_s', 'embed_t'), rngs, pair)
      }
    return {'params': params}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    module, total = Embedding(self.dimension), 0.0
    for key, ours, theirs in zip(
      self._keys, self.look(student_view), self.look(teacher_view)
    ):
      params = variables['params'][key]
      total += cc_loss(
        module.apply({'params': params['embed_s']}, ours),
        module.apply({'params': params['embed_t']}, theirs),
      )
    return total, {}, {}
