"""How alike teacher and student see images: linear CKA at each cut.

Centered kernel alignment compares two sets of features of the same examples,
whatever their numbers of channels: 1 where one is the other rotated, scaled
and shifted, about 0 where they have nothing to do with one another (Kornblith
et al., *Similarity of Neural Network Representations Revisited*, ICML 2019).
The means over batches of unbiased estimates of HSIC make the result
independent of the batch size but for its noise (Nguyen et al., *Do Wide and
Deep Networks Learn the Same Things?*, ICLR 2021; Song et al., *Feature
Selection via Dependence Maximization*, JMLR 2012).
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import blocks
from cbkd_jax.blocks import Array, Network, Variables
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.finished_run import Finished

_BATCH = 250  # images, at most
_LEAST = 4  # images, with which an estimate begins to be defined
_NUMBERS = 2**26  # of the features of a batch at one cut, at most
_ROUNDING = 1e-6  # of a float32 mean, relatively: no feature varies by less


def compare(run: Finished, examples: int) -> tuple[dict[str, float], int]:
  """CKA between teacher and student on test images.

  Args:
    run: the run.
    examples: how many images at most; they are drawn from the split, the same
      ones every time.

  Returns:
    CKA by cut: 'block 0', ..., of the blocks' features before any pooling,
    and 'pooled', of the vectors in front of the classifier; NaN where either
    network has the same there for all images, and empty with less than four
    images. And how many images were looked at.
  """
  split, pair = run.dataset.test, (run.teacher, run.student)
  examples = min(examples, len(split))
  if examples < _LEAST:
    return {}, 0
  shapes = [
    blocks.view_shapes(model.network, run.image_shape, 1) for model in pair
  ]
  size, count = batches(examples, max(x.size for x in jax.tree.leaves(shapes)))
  program = jax.jit(
    functools.partial(
      _grams, [model.network for model in pair], run.augmentation
    )
  )
  variables = jax.device_put([model.variables for model in pair])
  names = [f'block {i}' for i in range(len(shapes[0].features))] + ['pooled']
  sums = np.zeros((len(names), 3))
  # Drawn: a split may be sorted by class.
  drawn = np.random.default_rng(0).permutation(len(split))[: count * size]
  for images, _ in split.batches(list(drawn.reshape(count, size))):
    grams = jax.device_get(program(variables, images))
    sums += [products(*both) for both in zip(*grams)]
  return dict(zip(names, map(alignment, sums))), count * size


def batches(examples: int, numbers: int) -> tuple[int, int]:
  """Size and number of batches, all alike: their estimates count the same.

  Args:
    examples: at least four.
    numbers: of an image's features at the largest cut.
  """
  at_most = min(max(_NUMBERS // numbers, _LEAST), _BATCH)
  count = min(math.ceil(examples / at_most), examples // _LEAST)
  return examples // count, count


def _grams(
  networks: Sequence[Network],
  augmentation: Augmentation,
  variables: Sequence[Variables],
  images: Array,
) -> list[list[Array]]:
  """Gram matrices `[n, n]` of each network at each cut."""
  x = normalise(jnp.asarray(images), augmentation)
  found = []
  for network, own in zip(networks, variables):
    view = blocks.view(blocks.run(network, own, x)[0])
    found.append([gram(y) for y in (*view.features, view.pooled)])
  return found


def gram(features: Array) -> Array:
  """Inner products of the examples' features.

  Args:
    features: `[n, ...]`.

  Returns:
    float32 `[n, n]`. Of the features less their mean, which `hsic` is blind
    to: large numbers that cancel there would not do so in float32.
  """
  x = features.reshape(len(features), -1).astype(jnp.float32)
  mean = x.mean(0, keepdims=True)
  x = jnp.where(jnp.abs(x - mean) > _ROUNDING * jnp.abs(mean), x - mean, 0)
  return jnp.matmul(x, x.T, precision='highest')


def products(one: np.ndarray, other: np.ndarray) -> list[float]:
  """What `alignment` takes, of the Gram matrices of the same examples."""
  return [hsic(one, other), hsic(one, one), hsic(other, other)]


def hsic(one: np.ndarray, other: np.ndarray) -> float:
  """The unbiased estimate of HSIC (Song et al., 2012, equation 5), in float64.

  Args:
    one: a Gram matrix `[n, n]`, n at least 4.
    other: another one of the same examples.
  """
  n = len(one)
  k, m = (np.asarray(x, np.float64) * (1 - np.eye(n)) for x in (one, other))
  rows_k, rows_m = k.sum(1), m.sum(1)
  found = np.sum(k * m)
  found += rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
  found -= 2 / (n - 2) * (rows_k @ rows_m)
  return float(found / (n * (n - 3)))


def alignment(sums: Sequence[float]) -> float:
  """CKA, of the sums over batches of what `products` gives."""
  both, teacher, student = sums
  if teacher <= 0 or student <= 0:
    return math.nan
  return float(both / math.sqrt(teacher * student))
