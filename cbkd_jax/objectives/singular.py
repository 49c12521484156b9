"""Singular vectors as functions that can be differentiated everywhere.

They come from the Gram matrix, with a derivative that stays finite where
singular values coincide: 1 / gap becomes gap / (gap^2 + e^2).
"""

import jax
import jax.numpy as jnp

from cbkd_jax.objectives.maps import l2_normalize

# Gaps between squared singular values below this share of the largest one
# count as none.
BROADENING = 1e-5

Singular = tuple[jax.Array, jax.Array]


@jax.custom_jvp
def eigh(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Eigenvalues and eigenvectors, with a derivative that stays finite.

  Args:
    gram: `[batch, n, n]`, symmetric and positive.

  Returns:
    Values `[batch, n]`, ascending, and vectors as columns `[batch, n, n]`.
  """
  return tuple(jnp.linalg.eigh(gram, symmetrize_input=False))


@eigh.defjvp
def _eigh_jvp(primals, tangents):
  values, vectors = eigh(*primals)
  (change,) = tangents
  change = jnp.einsum('bni,bnm,bmj->bij', vectors, change, vectors)
  gap = values[:, None, :] - values[:, :, None]
  # At least 1, see `singular`: the maximum is for matrices of zeros.
  largest = jnp.maximum(values[:, -1], 1.0)[:, None, None]
  mixing = gap / (gap**2 + (BROADENING * largest) ** 2) * change
  tangent = jnp.einsum('bii->bi', change), vectors @ mixing
  return (values, vectors), tangent


def singular(x: jax.Array, count: int) -> Singular:
  """The largest singular values and their right vectors.

  Args:
    x: `[batch, rows, columns]`.
    count: how many to keep; those there are where that is less.

  Returns:
    The values, descending, at norm 1 per example `[batch, kept]`; the vectors
    as columns `[batch, columns, kept]`, of norm 1 and arbitrary sign. Beyond
    the matrix's rank both are 0: any vector would do there.
  """
  # Neither result depends on the matrix's scale; a Gram matrix's range does.
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
  x = x / jnp.where(scale > 0, scale, 1.0)
  wide = x.shape[1] < x.shape[2]
  product = 'bnr,bmr->bnm' if wide else 'brn,brm->bnm'
  values, vectors = eigh(jnp.einsum(product, x, x))
  rounding = values.shape[1] * jnp.finfo(values.dtype).eps * values[:, -1:]
  positive = (values > rounding)[:, ::-1][:, :count]
  values = jnp.where(positive, values[:, ::-1][:, :count], 1.0)
  values = jnp.where(positive, jnp.sqrt(values), 0.0)
  vectors = vectors[:, :, ::-1][:, :, :count]
  if wide:
    vectors = l2_normalize(jnp.einsum('brn,brk->bnk', x, vectors), axis=1)
  return l2_normalize(values), jnp.where(positive[:, None, :], vectors, 0.0)


def fix_signs(vectors: jax.Array) -> jax.Array:
  """Columns, with their entry of largest size made positive.

  Args:
    vectors: `[batch, n, k]`.

  Returns:
    An array like it.
  """
  index = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
  largest = jnp.take_along_axis(vectors, index, axis=1)
  return jnp.where(largest < 0, -vectors, vectors)
