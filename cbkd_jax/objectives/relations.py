"""Relations between the examples of a batch: products, distances, cosines.

What several methods share. A zero vector has no direction: it stays zero, and
its gradient is zero. Products are computed in full float32, as differences of
them are taken.
"""

import jax
import jax.numpy as jnp


def gram(x: jax.Array) -> jax.Array:
  """Inner products of all pairs of rows.

  Args:
    x: `[batch, features]`.

  Returns:
    `[batch, batch]`.
  """
  return jnp.matmul(x, x.T, precision='highest')


def directions(x: jax.Array, epsilon: float, axis: int = -1) -> jax.Array:
  """x / (||x|| + epsilon) along an axis; at 0 it and its gradient are 0.

  Args:
    x: any array.
    epsilon: added to the norm.
    axis: the vectors'.

  Returns:
    An array like x.
  """
  squared = jnp.sum(x * x, axis=axis, keepdims=True)
  # Guarded inside the root: its derivative at 0 is infinite.
  norm = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
  return jnp.where(squared > 0, x / (norm + epsilon), 0.0)


def squared_distances(x: jax.Array, smallest: float = 0.0) -> jax.Array:
  """Squared Euclidean distances of all pairs, at least `smallest`.

  Args:
    x: `[batch, features]`.
    smallest: smaller ones, those on the diagonal too, become this, with
      gradient 0.

  Returns:
    `[batch, batch]`.
  """
  products = gram(x)
  # The products' own diagonal, so that equal rows have distance 0 exactly.
  squares = jnp.diagonal(products)
  distances = squares[:, None] + squares[None] - 2 * products
  return jnp.where(distances > smallest, distances, smallest)


def without_diagonal(x: jax.Array) -> jax.Array:
  """A matrix with zeros on its diagonal.

  Args:
    x: `[batch, batch]`.

  Returns:
    An array like x.
  """
  return jnp.where(jnp.eye(x.shape[0], dtype=bool), 0.0, x)


def cosine_similarities(x: jax.Array, epsilon: float) -> jax.Array:
  """(cosine + 1) / 2 of all pairs of rows, in [0, 1]; 1/2 with a zero row.

  Args:
    x: `[batch, features]`.
    epsilon: added to the norms.

  Returns:
    `[batch, batch]`.
  """
  similarities = (gram(directions(x, epsilon)) + 1) / 2
  return jnp.maximum(similarities, 0.0)  # Rounding may fall below.


def shares(similarities: jax.Array) -> jax.Array:
  """Rows divided by their sums: distributions.

  Args:
    similarities: `[batch, batch]`, at least 0, and not all 0 in any row.

  Returns:
    An array like it.
  """
  return similarities / jnp.sum(similarities, axis=1, keepdims=True)
