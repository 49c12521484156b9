"""Banks of embeddings: a row of norm 1 for each example of the train split."""

import math

import jax
import jax.numpy as jnp

from cbkd_jax.objectives.maps import l2_normalize


def init_bank(rng: jax.Array, train_size: int, dimension: int) -> jax.Array:
  """Random rows, of norm about 1 and at most sqrt(3).

  Args:
    rng: a PRNG key.
    train_size: rows.
    dimension: columns.

  Returns:
    `[train_size, dimension]`.
  """
  rows = jax.random.uniform(rng, (train_size, dimension), minval=-1)
  return rows * math.sqrt(3 / dimension)


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
  """Inner products with rows of a bank, which is constant.

  Those with *all* rows are computed: `batch * train_size` numbers and a
  product of matrices, against `batch * count * dimension` numbers to be
  gathered otherwise (of a batch of 128 on CIFAR 26 MB against 1.1 GB).

  Args:
    embedded: `[batch, dimension]`.
    bank: `[train_size, dimension]`.
    chosen: `[batch, count]` rows of it.

  Returns:
    `[batch, count]`.
  """
  bank = jax.lax.stop_gradient(bank)
  # At a temperature of 0.07 a product of rounded factors shows.
  every = jnp.matmul(embedded, bank.T, precision='highest')
  return jnp.take_along_axis(every, chosen, axis=1)


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
