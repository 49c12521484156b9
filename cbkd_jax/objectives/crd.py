"""CRD: the student's embedding picks the teacher's of the same image.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020
(arXiv:1910.10699). As in RepDistiller's code the negatives are embeddings of
earlier steps, held in two banks of a row per example of the train split. Each
network's embedding is contrasted with the rows of the other network's bank.

Where ours differs: negatives are always drawn with replacement (there, only
where the other classes have too few); probabilities are compared by their
logarithms.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.models import layers
from cbkd_jax.objectives.maps import flatten, l2_normalize
from cbkd_jax.objectives.memory import (
  draw_negatives,
  init_bank,
  similarities,
  update_bank,
)
from cbkd_jax.objectives.method import BatchWise, Learned
from cbkd_jax.objectives.nce import first_normaliser, nce_loss
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import init_module

# exp(similarity / temperature) of a row as first drawn, of norm sqrt(3) at
# most, is within float32 from here on.
_COLDEST = 0.02


class Embedding(nn.Module):
  """A dense layer and L2 normalisation; maps are flattened.

  Attributes:
    dimension: of the embedding.
  """

  dimension: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = nn.Dense(
      self.dimension, kernel_init=layers.DENSE_INIT, name='dense'
    )
    return l2_normalize(dense(flatten(x)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContrastiveRepresentationDistillation(Looking, Learned, BatchWise):
  """`crd(dimension=128, negatives=16384, temperature=0.07, momentum=0.5)`.

  Looks at one place: the pooled vectors, or one block's maps, flattened. Its
  state takes 8 * train_size * dimension bytes (51 MB on CIFAR).
  """

  dimension: int = 128
  negatives: int = 16384
  temperature: float = 0.07
  momentum: float = 0.5
  at: str | int | tuple = 'pooled'

  name: ClassVar[str] = 'crd'
  paper: ClassVar[str] = (
    'Tian et al., Contrastive Representation Distillation, ICLR 2020'
  )
  recipe: ClassVar[str] = 'ce + 0.8*crd()'
  knowledge: ClassVar[str] = 'relation'
  needs: ClassVar[tuple[str, ...]] = (
    'labels',
    'indices',
    'keys',
    'train_labels',
  )
  may_pool: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('dimension', 'negatives')
    self.require_fraction('momentum')
    if not _COLDEST <= self.temperature < math.inf:
      self.fail('temperature', f'at least {_COLDEST}')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    ours, theirs = self.look(student_view), self.look(teacher_view)
    if len(ours) > 1:
      raise UserError(
        f'{self.name}.at = {self.at!r}: means the blocks '
        f"{', '.join(map(str, self.places))}; must be one, or 'pooled'"
      )
    keys = jax.random.split(rng, 4)
    embedding = Embedding(self.dimension)
    params = {
      name: init_module(embedding, key, x)[0]
      for name, key, (x,) in zip(('embed_s', 'embed_t'), keys, (ours, theirs))
    }
    size = self.setting.train_size
    state = {
      'bank_student': init_bank(keys[2], size, self.dimension),
      'bank_teacher': init_bank(keys[3], size, self.dimension),
      # Negative: not set yet.
      'z_student': jnp.float32(-1),
      'z_teacher': jnp.float32(-1),
    }
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    labels: jax.Array,
    indices: jax.Array,
    keys: jax.Array,
    train_labels: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    drawn = draw_negatives(keys, labels, train_labels, self.negatives)
    chosen = jnp.concatenate([indices[:, None], drawn], axis=1)
    return self.against(variables, student_view, teacher_view, chosen)

  def against(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    chosen: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """`loss` for given negatives.

    Args:
      variables: the method's.
      student_view: the student's.
      teacher_view: the teacher's.
      chosen: `[batch, 1 + negatives]` positions in the train split, the
        example's own first.

    Returns:
      As `loss`.
    """
    params, state = variables['params'], variables['state']
    embedding, axis_name = Embedding(self.dimension), self.setting.axis_name
    size = state['bank_student'].shape[0]
    (ours,), (theirs,) = self.look(student_view), self.look(teacher_view)
    student = embedding.apply({'params': params['embed_s']}, ours)
    teacher = embedding.apply({'params': params['embed_t']}, theirs)

    # Each side is contrasted with the other side's bank.
    total, new_state = 0.0, {}
    for side, embedded, other in (
      ('student', student, 'teacher'),
      ('teacher', teacher, 'student'),
    ):
      bank = state[f'bank_{other}']
      logits = similarities(embedded, bank, chosen) / self.temperature
      z = state[f'z_{side}']
      z = jnp.where(z < 0, first_normaliser(logits, size, axis_name), z)
      new_state[f'z_{side}'] = z.astype(state[f'z_{side}'].dtype)
      total += nce_loss(logits, z, size)

    # The banks are the same on all replicas, so all see the whole batch.
    seen = jax.lax.stop_gradient((student, teacher, chosen[:, 0]))
    if axis_name is not None and not self.global_batch:
      seen = jax.lax.all_gather(seen, axis_name, tiled=True)
    student, teacher, indices = seen
    for side, embedded in ('student', student), ('teacher', teacher):
      bank = state[f'bank_{side}']
      new_state[f'bank_{side}'] = update_bank(
        bank, indices, embedded, self.momentum
      )
    return total, {}, new_state
