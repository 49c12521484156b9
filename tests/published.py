"""A method's value and gradients against those of its published code.

A case's arrays are in torch's layout; `build` puts them into ours, once for
the values and once for the gradients, so that no array is compared in a wrong
layout.
"""

from collections.abc import Callable, Mapping
from typing import Any

import golden
import jax
import jax.numpy as jnp
import numpy as np

Case = Mapping[str, np.ndarray]


def feature(x: np.ndarray) -> np.ndarray:
  """`[N, C, H, W]` to `[N, H, W, C]`; vectors stay."""
  return golden.to_nhwc(x)


def conv(x: np.ndarray) -> np.ndarray:
  """A convolution's kernel, (out, in, h, w) to (h, w, in, out)."""
  return x.transpose(2, 3, 1, 0)


def conv_transpose(x: np.ndarray) -> np.ndarray:
  """A transposed one's, (in, out, h, w) to Linen's (h, w, out, in)."""
  return x.transpose(2, 3, 1, 0)


def dense(x: np.ndarray) -> np.ndarray:
  """A linear layer's kernel, (out, in) to (in, out)."""
  return x.T


def check(
  name: str,
  build: Callable[[Callable[[str], np.ndarray]], Any],
  loss: Callable[[Any, Case], jax.Array],
  *,
  loss_name: str = 'loss',
) -> None:
  """Asserts that loss and gradients are those of a golden case.

  Float64 cases to 1e-6 in the value and to 1e-5 of each gradient's largest
  entry; float32 ones to 1e-5 in both, against the value in float64.

  Args:
    name: of the case, e.g. 'kd__rep_T4'.
    build: `get -> tree` of what has a gradient, `get(array name)` giving the
      array; is called with the values and with the gradients.
    loss: `(tree, case) -> scalar`, or (scalar, anything).
    loss_name: the array to compare with.
  """
  case = golden.load(f'losses/{name}')
  double = str(case['meta_dtype']) == 'float64'
  with jax.enable_x64(double):
    values = jax.tree.map(jnp.asarray, build(lambda n: case[n]))

    def scalar(tree):
      found = loss(tree, case)
      return found[0] if isinstance(found, tuple) else found

    value, grads = jax.jit(jax.value_and_grad(scalar))(values)
    assert value.dtype == (jnp.float64 if double else jnp.float32)
    assert value.shape == ()
  if not double and loss_name == 'loss':
    loss_name = 'loss_float64'
  np.testing.assert_allclose(
    value, case[loss_name], rtol=1e-6 if double else 1e-5, atol=1e-12
  )
  if loss_name not in ('loss', 'loss_float64'):
    return
  expected = build(lambda n: case[f'grad_{n}'])
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected)
  ):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(
      ours,
      theirs,
      rtol=0,
      atol=1e-5 * np.abs(theirs).max(),
      err_msg=jax.tree_util.keystr(path),
    )
