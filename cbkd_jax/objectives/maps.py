"""Feature maps `[batch, height, width, channels]` made comparable."""

import jax
import jax.numpy as jnp
import numpy as np


def adaptive_average_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Average pooling to a given size, with torch's bins.

  Bin i of m averages rows floor(i n / m) to ceil((i + 1) n / m) - 1 of n; bins
  overlap where m does not divide n.

  Args:
    x: `[batch, height, width, channels]`.
    size: (height, width) of the result, either may be larger than x's.

  Returns:
    `[batch, *size, channels]`.
  """
  if x.shape[1:3] == tuple(size):
    return x
  rows, columns = (
    jnp.asarray(_bins(n, m), x.dtype) for n, m in zip(x.shape[1:3], size)
  )
  # A mean is not to be rounded like a matrix unit's products.
  return jnp.einsum(
    'bhwc,ih,jw->bijc', x, rows, columns, precision=jax.lax.Precision.HIGHEST
  )


def _bins(n: int, m: int) -> np.ndarray:
  """`[m, n]`, each row the mean over one bin."""
  found = np.zeros((m, n))
  for i in range(m):
    start, stop = i * n // m, -((i + 1) * n // -m)
    found[i, start:stop] = 1 / (stop - start)
  return found


def match_sizes(one: jax.Array, two: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Pools the larger map to the size of the smaller one, side by side.

  Args:
    one: `[batch, height, width, channels]`.
    two: the same with its own sizes.

  Returns:
    Both, of equal height and width.
  """
  size = tuple(map(min, one.shape[1:3], two.shape[1:3]))
  return adaptive_average_pool(one, size), adaptive_average_pool(two, size)


def nearest_resize(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Nearest-neighbour resize, source index floor(i n / m) as torch has it.

  Args:
    x: `[batch, height, width, channels]`.
    size: (height, width) of the result.

  Returns:
    `[batch, *size, channels]`.
  """
  rows, columns = (np.arange(m) * n // m for n, m in zip(x.shape[1:3], size))
  return x[:, rows][:, :, columns]


def flatten(x: jax.Array) -> jax.Array:
  """All that belongs to an example in a row.

  Args:
    x: `[batch, ...]`.

  Returns:
    `[batch, features]`.
  """
  return x.reshape(x.shape[0], -1)


def l2_normalize(
  x: jax.Array, axis: int = -1, epsilon: float = 1e-12
) -> jax.Array:
  """x / max(||x||, epsilon) along an axis; at 0 it and its gradient are 0.

  (The gradient of torch's `normalize` is 1 / epsilon there.)

  Args:
    x: any array.
    axis: the vectors'.
    epsilon: the smallest norm to divide by.

  Returns:
    An array like x.
  """
  squared = jnp.sum(x * x, axis=axis, keepdims=True)
  # Guarded inside the root: its derivative at 0 is infinite.
  safe = jnp.where(squared > epsilon**2, squared, 1.0)
  norm = jnp.where(squared > epsilon**2, jnp.sqrt(safe), epsilon)
  return jnp.where(squared > 0, x / norm, 0.0)


def absolute(x: jax.Array) -> jax.Array:
  """|x|, whose gradient at 0 is 0 as in torch; that of `jnp.abs` is 1.

  Args:
    x: any array.

  Returns:
    An array like x.
  """
  return x * jnp.sign(x)
