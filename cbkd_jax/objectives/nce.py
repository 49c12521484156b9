"""Noise-contrastive estimation: one positive among many negatives."""

import math

import jax
import jax.numpy as jnp

_EPSILON = 1e-7


def nce_loss(
  logits: jax.Array, normaliser: jax.Array, train_size: int
) -> jax.Array:
  """How badly the positive is told from noise, mean over examples.

  With p = exp(logits) / normaliser, K negatives and m = K / train_size:
  -log(p / (p + m + e)) of the positive and -log(m / (p + m + e)) of each
  negative, e = 1e-7.

  Args:
    logits: `[batch, 1 + K]` similarities over temperature, positive first.
    normaliser: Z, a constant.
    train_size: examples in the train split.

  Returns:
    A scalar.
  """
  noise = (logits.shape[1] - 1) / train_size
  log_p = logits - jnp.log(normaliser)
  log_sum = jnp.logaddexp(log_p, math.log(noise + _EPSILON))
  positive = log_p[:, 0] - log_sum[:, 0]
  negative = jnp.sum(math.log(noise) - log_sum[:, 1:], axis=1)
  return -jnp.mean(positive + negative)


def first_normaliser(
  logits: jax.Array, train_size: int, axis_name: str | None = None
) -> jax.Array:
  """Z of a first batch: train_size * mean of exp(logits), a constant.

  Args:
    logits: `[batch, 1 + K]`.
    train_size: examples in the train split.
    axis_name: the replicas' axis, if the mean is to be over all.

  Returns:
    A scalar.
  """
  mean = jnp.mean(jnp.exp(jax.lax.stop_gradient(logits)))
  if axis_name is not None:
    mean = jax.lax.pmean(mean, axis_name)
  return mean * train_size
