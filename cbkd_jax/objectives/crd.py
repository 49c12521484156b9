"""CRD: the student's embedding picks the teacher's of the same image.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020
(arXiv:1910.10699). As in RepDistiller's code the negatives are embeddings of
earlier steps, held in two banks of a row per example of the train split, and
the contrast runs in both directions.

Where ours differs: negatives are always drawn with replacement (there, only
where a class has too few); probabilities are compared by their logarithms.
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
from cbkd_jax.objectives.method import BatchWise, Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import init_module

_EPSILON = 1e-7
# exp(similarity / temperature) of a row as first drawn, of norm sqrt(3) at
# most, is within float32 from here on.
_COLDEST = 0.02


class Embedding(nn.Module):
  """A dense layer and L2 normalisation; maps are flattened."""

  dimension: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    dense = nn.Dense(
      self.dimension, kernel_init=layers.DENSE_INIT, name='dense'
    )
    return l2_normalize(dense(flatten(x)))


def draw_negatives(
  keys: jax.Array, labels: jax.Array, train_labels: jax.Array, count: int
) -> jax.Array:
  """Examples of other classes, uniformly and with replacement.

  Where there is no other class, examples of that class.

  Args:
    keys: `[batch]` a PRNG key per example.
    labels: `[batch]` their classes.
    train_labels: `[train_size]`.
    count: negatives per example.

  Returns:
    `[batch, count]` positions in the train split.
  """
  order = jnp.argsort(train_labels)
  grouped = train_labels[order]
  start = jnp.searchsorted(grouped, labels, side='left')
  stop = jnp.searchsorted(grouped, labels, side='right')
  size = train_labels.shape[0]

  def one(key, start, stop):
    # A class is a run in the order, which is stepped over.
    others = jnp.maximum(size - (stop - start), 1)
    rank = jax.random.randint(key, (count,), 0, others)
    return jnp.where(rank < start, rank, rank + (stop - start))

  ranks = jax.vmap(one)(keys, start, stop)
  return order[jnp.minimum(ranks, size - 1)]


def similarities(
  embedded: jax.Array, bank: jax.Array, chosen: jax.Array
) -> jax.Array:
  """`[batch, chosen]` inner products with rows of a bank, which is constant.

  Those with *all* rows are computed: `batch * train_size` numbers and a
  product of matrices, against `batch * chosen * dimension` numbers to be
  gathered otherwise (of a batch of 128 on CIFAR 26 MB against 1.1 GB).

  Args:
    embedded: `[batch, dimension]`.
    bank: `[train_size, dimension]`.
    chosen: `[batch, chosen]` rows of it.
  """
  bank = jax.lax.stop_gradient(bank)
  # At a temperature of 0.07 a product of rounded factors shows.
  every = jnp.matmul(embedded, bank.T, precision='highest')
  return jnp.take_along_axis(every, chosen, axis=1)


def contrast(
  logits: jax.Array, normaliser: jax.Array, train_size: int
) -> jax.Array:
  """The NCE loss of one side, mean over examples.

  With p = exp(logits) / normaliser and K negatives' share of noise, m = K /
  train_size: -log(p / (p + m + e)) of the positive and -log(m / (p + m + e))
  of each negative, e = 1e-7.

  Args:
    logits: `[batch, 1 + K]` similarities over temperature, positive first.
    normaliser: Z, a constant.
    train_size: examples in the train split.

  Returns:
    A scalar.
  """
  noise = (logits.shape[1] - 1) / train_size
  log_p = logits - jnp.log(normaliser)
  log_sum = jnp.logaddexp(log_p, math.log(noise + _EPSILON))
  positive = log_p[:, 0] - log_sum[:, 0]
  negative = jnp.sum(math.log(noise) - log_sum[:, 1:], axis=1)
  return -jnp.mean(positive + negative)


def first_normaliser(
  logits: jax.Array, train_size: int, axis_name: str | None = None
) -> jax.Array:
  """Z of a first batch: train_size * mean of exp(logits), over replicas."""
  mean = jnp.mean(jnp.exp(jax.lax.stop_gradient(logits)))
  if axis_name is not None:
    mean = jax.lax.pmean(mean, axis_name)
  return mean * train_size


def update_bank(
  bank: jax.Array, indices: jax.Array, embedded: jax.Array, momentum: float
) -> jax.Array:
  """Rows `indices` move towards the embeddings; of norm 1 afterwards.

  Args:
    bank: `[train_size, dimension]`.
    indices: `[batch]`; of an example that occurs twice, in a batch that two
      epochs share, the later embedding counts.
    embedded: `[batch, dimension]`.
    momentum: the old row's share.

  Returns:
    The new bank.
  """
  moved = momentum * bank[indices] + (1 - momentum) * embedded
  same = indices[:, None] == indices[None, :]
  again = jnp.any(jnp.triu(same, k=1), axis=1)
  # Writing twice to a row would leave it to the device which one stays.
  indices = jnp.where(again, bank.shape[0], indices)
  return bank.at[indices].set(l2_normalize(moved), mode='drop')


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
    shape = self.setting.train_size, self.dimension
    bound = math.sqrt(3 / self.dimension)
    state = {
      'bank_student': jax.random.uniform(keys[2], shape, minval=-1) * bound,
      'bank_teacher': jax.random.uniform(keys[3], shape, minval=-1) * bound,
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
    """`loss` for `chosen [batch, 1 + negatives]`, the examples first."""
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
      total += contrast(logits, z, size)

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
