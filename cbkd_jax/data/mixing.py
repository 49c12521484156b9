"""Mixup and CutMix: each image mixed with another one of the global batch.

Zhang et al., mixup: Beyond Empirical Risk Minimization, ICLR 2018.
Yun et al., CutMix: Regularization Strategy to Train Strong Classifiers with
Localizable Features, ICCV 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cbkd_jax.data.augment import Augmentation

# A purpose of a step's key; supply.py has others.
_MIXING = 2**32 - 4


class Partners(NamedTuple):
  """With whom a replica's examples are mixed.

  Attributes:
    indices: int32 [n], the partners' positions in the train split.
    positions: int32 [n], their positions in the global batch.
  """

  indices: jax.Array
  positions: jax.Array


def partners(
  rng: jax.Array, everyone: jax.Array, positions: jax.Array
) -> Partners:
  """Everyone's partner, by one random permutation of the global batch.

  As in the published code, an example may be its own partner.

  Args:
    rng: the step's key.
    everyone: int32 [batch], the global batch's positions in the train split.
    positions: int32 [n], this replica's positions in the global batch.

  Returns:
    The partners of this replica's examples, which may be another's.
  """
  key, _ = _keys(rng)
  chosen = jax.random.permutation(key, len(everyone))[positions]
  return Partners(everyone[chosen], chosen)


def weights(
  rng: jax.Array, augmentation: Augmentation, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """The own image's weight at each pixel, one draw for the whole batch.

  Args:
    rng: the step's key.
    augmentation: `mixup` or `cutmix` is above 0; with both, a coin decides.
    height: of the images, in pixels.
    width: likewise.

  Returns:
    (weights float32 [height, width], the own label's share, [] float32, which
    is the weights' mean).
  """
  mixup, cutmix = augmentation.mixup, augmentation.cutmix
  assert augmentation.mixes
  _, key = _keys(rng)
  coin, share_rng, centre_rng = jax.random.split(key, 3)
  blends = jax.random.bernoulli(coin) if mixup and cutmix else bool(mixup)
  alpha = jnp.where(blends, mixup, cutmix)
  share = jax.random.beta(share_rng, alpha, alpha)
  if not cutmix:
    return jnp.full((height, width), share), share
  centre = jax.random.randint(centre_rng, (2,), 0, jnp.array([height, width]))
  outside, area = _box(centre, share, height, width)
  own = 1 - area / (height * width)
  return jnp.where(blends, share, outside), jnp.where(blends, share, own)


def mix(x: jax.Array, others: jax.Array, weights: jax.Array) -> jax.Array:
  """`weights * x + (1 - weights) * others`, exact where a weight is 0 or 1.

  Args:
    x: [n, height, width, channels].
    others: likewise, the partners' images.
    weights: [height, width].

  Returns:
    [n, height, width, channels].
  """
  weights = weights[None, :, :, None]
  return weights * x + (1 - weights) * others


def _keys(rng: jax.Array) -> jax.Array:
  """One key for the partners, one for the weights."""
  return jax.random.split(jax.random.fold_in(rng, _MIXING))


def _box(
  centre: jax.Array, share: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array]:
  """CutMix's box, of `1 - share` of the area where no border cuts it.

  Args:
    centre: row and column, [2].
    share: the own one, [].
    height: of the image, in pixels.
    width: likewise.

  Returns:
    (1.0 outside of the box and 0.0 in it, [height, width]; its pixels, []).
  """
  sizes = jnp.array([height, width])
  # Half of the box on either side, rounded down, as published.
  half = (jnp.sqrt(1 - share) * sizes).astype(jnp.int32) // 2
  top, left = jnp.maximum(centre - half, 0)
  bottom, right = jnp.minimum(centre + half, sizes)
  rows, columns = jnp.arange(height), jnp.arange(width)
  inside = ((rows >= top) & (rows < bottom))[:, None] & (
    (columns >= left) & (columns < right)
  )[None]
  return 1.0 - inside, (bottom - top) * (right - left)
