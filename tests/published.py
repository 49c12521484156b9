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
) -> tuple[Any, ...]:
  """Asserts that loss and gradients are those of a golden case.

  Float64 cases to 1e-6 in the value and to 1e-5 of each gradient's largest
  entry; float32 ones to 1e-5 in both, against the value in float64. A gradient
  that is 0 but for rounding may differ by 1e-12.

  Args:
    name: of the case, e.g. 'kd__rep_T4'.
    build: `get -> tree` of what has a gradient, `get(array name)` giving the
      array; is called with the values and with the gradients.
    loss: `(tree, case) -> scalar`, or a tuple that begins with one.
    loss_name: the array to compare with.

  Returns:
    What else was in the loss's tuple.
  """
  case = golden.load(f'losses/{name}')
  double = str(case['meta_dtype']) == 'float64'
  with jax.enable_x64(double):
    values = jax.tree.map(jnp.asarray, build(lambda n: case[n]))

    def run(tree):
      found = loss(tree, case)
      value, *others = found if isinstance(found, tuple) else (found,)
      return value, tuple(others)

    (value, others), grads = jax.device_get(
      jax.jit(jax.value_and_grad(run, has_aux=True))(values)
    )
    assert value.dtype == (jnp.float64 if double else jnp.float32)
    assert value.shape == ()
  if not double and loss_name == 'loss':
    loss_name = 'loss_float64'
  np.testing.assert_allclose(
    value, case[loss_name], rtol=1e-6 if double else 1e-5, atol=1e-12
  )
  if loss_name not in ('loss', 'loss_float64'):
    return others
  expected = build(lambda n: case[f'grad_{n}'])
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(grads),
    jax.tree.leaves(expected),
    strict=True,
  ):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(
      ours,
      theirs,
      rtol=0,
      atol=1e-5 * np.abs(theirs).max() + 1e-12,
      err_msg=jax.tree_util.keystr(path),
    )
  return others


def batch_norm(get: Callable[[str], np.ndarray], name: str) -> dict[str, Any]:
  """The parameters of a normalisation."""
  return {'scale': get(f'{name}.weight'), 'bias': get(f'{name}.bias')}


def statistics(get: Callable[[str], np.ndarray], name: str) -> dict[str, Any]:
  """Its running statistics."""
  return {
    'mean': get(f'{name}.running_mean'),
    'var': get(f'{name}.running_var'),
  }


def check_statistics(
  name: str, torch_name: str, found: dict[str, np.ndarray], count: int
) -> None:
  """Asserts that a normalisation's running statistics moved as published.

  Torch keeps the unbiased variance of a batch, Linen the biased one.

  Args:
    name: of the case.
    torch_name: of the normalisation.
    found: its statistics after the step.
    count: of the numbers that a channel's are taken over.
  """
  case = golden.load(f'losses/{name}')
  before = statistics(lambda n: case[n], torch_name)
  after = statistics(lambda n: case[f'after_{n}'], torch_name)
  kept = 0.9 * before['var']
  expected = {
    'mean': after['mean'],
    'var': kept + (after['var'] - kept) * (count - 1) / count,
  }
  accuracy = 1e-9 if case['meta_dtype'] == 'float64' else 1e-5
  for key, theirs in expected.items():
    np.testing.assert_allclose(
      found[key], theirs, rtol=accuracy, atol=accuracy * np.abs(theirs).max()
    )
