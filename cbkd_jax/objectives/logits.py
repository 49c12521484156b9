"""Predictions of a single class and of the others, in log space.

What several methods share: finite where the probabilities themselves would be
0 in float32.
"""

import jax
import jax.numpy as jnp

# A logit in place of an excluded class's: probability 0, and differences of
# two of them are finite, which those of two infinities are not.
EXCLUDED = -1e30


def is_class(classes: jax.Array, logits: jax.Array) -> jax.Array:
  """Which logits are those of the examples' classes.

  Args:
    classes: `[batch]` integers.
    logits: `[batch, classes]`.

  Returns:
    `[batch, classes]` booleans, one true in each row.
  """
  return classes[:, None] == jnp.arange(logits.shape[-1])[None]


def log_odds(logits: jax.Array, chosen: jax.Array) -> jax.Array:
  """Logarithm of (the chosen class's probability / the others' sum).

  Args:
    logits: `[batch, classes]`.
    chosen: `[batch, classes]` booleans, one true in each row.

  Returns:
    `[batch]`.
  """
  one = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1)
  return one - jax.nn.logsumexp(jnp.where(chosen, EXCLUDED, logits), axis=-1)


def two_way_kl(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """Mean KL divergence between yes-or-no predictions.

  Args:
    student: `[batch]` log odds.
    teacher: likewise.

  Returns:
    A scalar.
  """
  kl = sum(
    jax.nn.sigmoid(sign * teacher)
    * (jax.nn.log_sigmoid(sign * teacher) - jax.nn.log_sigmoid(sign * student))
    for sign in (1.0, -1.0)
  )
  return jnp.mean(kl)
