"""Feature maps made comparable."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax.objectives import maps

pytestmark = pytest.mark.usefixtures('quick_compilation')


def random(*shape):
  return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
  'size', [(3, 2), (7, 4), (1, 1), (9, 5)], ids=lambda s: f'{s[0]}x{s[1]}'
)
def test_adaptive_pooling_has_torch_bins(size):
  """7x4 to a smaller, the same and a larger size, bin by bin."""
  x = random(2, 7, 4, 3)
  expected = np.zeros((2, *size, 3))
  for i in range(size[0]):
    rows = slice(i * 7 // size[0], int(np.ceil((i + 1) * 7 / size[0])))
    for j in range(size[1]):
      columns = slice(j * 4 // size[1], int(np.ceil((j + 1) * 4 / size[1])))
      expected[:, i, j] = np.mean(np.asarray(x)[:, rows, columns], (1, 2))
  found = maps.adaptive_average_pool(x, size)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_adaptive_pooling_by_hand():
  # Bins of 2 and 3 of five: {0,1,2}, {2,3,4} and {0,1}, {1,2,3}, {3,4}.
  x = np.float32([1.0, 2.0, 4.0, 8.0, 16.0])
  for size, expected in ((2, [7 / 3, 28 / 3]), (3, [1.5, 14 / 3, 12])):
    found = maps.adaptive_average_pool(x.reshape(1, 5, 1, 1), (size, 1))
    np.testing.assert_allclose(found.ravel(), expected, rtol=1e-6)


def test_pooling_is_as_exact_as_a_mean_whatever_the_default():
  """Accelerators round the factors of products by default."""
  with jax.default_matmul_precision('bfloat16'):
    text = str(
      jax.make_jaxpr(lambda x: maps.adaptive_average_pool(x, (2, 2)))(
        random(1, 4, 4, 1)
      )
    )
  assert 'HIGHEST' in text
  assert 'BF16' not in text.upper().replace('BFLOAT16', 'BF16')


def test_the_larger_side_is_pooled_to_the_smaller():
  one, two = random(2, 8, 3, 4), random(2, 4, 6, 5)
  ours, theirs = maps.match_sizes(one, two)
  assert ours.shape == (2, 4, 3, 4)
  assert theirs.shape == (2, 4, 3, 5)
  np.testing.assert_allclose(
    ours, (one[:, ::2] + one[:, 1::2]) / 2, rtol=1e-5, atol=1e-6
  )
  same = maps.match_sizes(one, one)
  assert same[0] is same[1] is one


def test_nearest_resize():
  x = np.arange(3)[:, None] + 10 * np.arange(2)[None]
  x = x.reshape(1, 3, 2, 1)
  rows, columns = [0, 0, 1, 1, 2], [0, 0, 1]
  expected = [[r + 10 * c for c in columns] for r in rows]
  found = maps.nearest_resize(x, (5, 3))
  np.testing.assert_array_equal(found[0, :, :, 0], expected)
  smaller = maps.nearest_resize(x, (2, 1))
  np.testing.assert_array_equal(smaller[0, :, :, 0], [[0], [1]])


def test_flatten():
  assert maps.flatten(random(2, 3, 4, 5)).shape == (2, 60)
  assert maps.flatten(random(2, 7)).shape == (2, 7)


def test_l2_normalize():
  x = np.float32([[3.0, 4.0], [0.0, 2.0]])
  np.testing.assert_allclose(
    maps.l2_normalize(x), [[0.6, 0.8], [0, 1]], rtol=1e-6
  )
  root = 20**0.5
  np.testing.assert_allclose(
    maps.l2_normalize(x, axis=0), [[1, 4 / root], [0, 2 / root]], rtol=1e-6
  )
  # Below the smallest norm it is a plain division.
  np.testing.assert_allclose(maps.l2_normalize(x, epsilon=10.0), x / 10)


def test_l2_normalize_at_zero():
  weights = np.float32([[1.0, 2.0], [1.0, 2.0]])
  x = np.float32([[0.0, 0.0], [3.0, 4.0]])
  value, grad = jax.jit(
    jax.value_and_grad(lambda x: jnp.sum(weights * maps.l2_normalize(x)))
  )(x)
  assert value == pytest.approx(0.6 + 1.6, rel=1e-6)
  np.testing.assert_array_equal(grad[0], [0, 0])
  # Orthogonal to the vector: (w - (w.u) u) / norm.
  np.testing.assert_allclose(
    grad[1], (np.asarray([1, 2]) - 2.2 * np.asarray([0.6, 0.8])) / 5, rtol=1e-4
  )


def test_absolute():
  x = np.float32([-2.0, 0.0, 3.0])
  values, grads = jax.vmap(jax.value_and_grad(maps.absolute))(x)
  np.testing.assert_array_equal(values, [2, 0, 3])
  np.testing.assert_array_equal(grads, [-1, 0, 1])
