"""Layers that the families share, with the settings of the published code.

Parameters and running statistics are float32 whatever the compute `dtype`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cbkd_jax.blocks import (
  KEPT,
  RECOMPUTING,
  SHIPPING,
  Array,
  HeadOutput,
  Layer,
)

# Flax's own default momentum is 0.99; torch's 0.1 is 0.9 in flax's sense.
BATCH_NORM_MOMENTUM = 0.9
BATCH_NORM_EPSILON = 1e-5
# ViT's and ConvNeXt's; torch's own default is 1e-5.
LAYER_NORM_EPSILON = 1e-6

# He et al. (2015), by fan-out: keeps the size of gradients through ReLUs.
CONV_INIT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')
# Uniform in ±1/sqrt(fan_in), as torch draws its linear layers.
DENSE_INIT = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
# ViT's and ConvNeXt's "truncated" normal is cut off at 100 deviations.
SMALL_INIT = nn.initializers.normal(0.02)


def conv(
  width: int,
  kernel: int = 3,
  stride: int = 1,
  *,
  groups: int = 1,
  use_bias: bool = False,
  dtype: Any,
  name: str,
) -> nn.Conv:
  """A square convolution of odd `kernel`, padded alike on every side.

  As many `groups` as channels make it depthwise.

  'SAME' would pad an even image on the right only where `stride` is 2, which
  shifts the image against that of the published networks.
  """
  return nn.Conv(
    width,
    (kernel, kernel),
    strides=stride,
    padding=kernel // 2,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=conv_init(groups),
    dtype=dtype,
    name=name,
  )


def conv_init(groups: int) -> nn.initializers.Initializer:
  """`CONV_INIT` by the fan-out of one group, as timm draws it.

  By that of all, as torchvision does, depthwise kernels would be so small that
  in front of a normalisation their gradients are all that clipping leaves.
  """
  if groups == 1:
    return CONV_INIT
  return nn.initializers.variance_scaling(2.0 * groups, 'fan_out', 'normal')


def batch_norm(
  train: bool, *, dtype: Any, axis_name: str | None, name: str
) -> nn.BatchNorm:
  """Batch normalisation; `axis_name` synchronises its batch statistics."""
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=BATCH_NORM_MOMENTUM,
    epsilon=BATCH_NORM_EPSILON,
    dtype=dtype,
    axis_name=axis_name,
    name=name,
  )


def layer_norm(*, dtype: Any, name: str) -> nn.LayerNorm:
  """Layer normalisation over channels, its statistics in float32.

  The variance is taken around the mean, not as a difference of squares.
  """
  return nn.LayerNorm(
    epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=dtype, name=name
  )


def dense(width: int, *, dtype: Any, name: str) -> nn.Dense:
  """A dense layer with bias, as ViT and ConvNeXt draw it."""
  return nn.Dense(width, kernel_init=SMALL_INIT, dtype=dtype, name=name)


def unit(fn: Callable[..., Any]) -> Callable[..., Any]:
  """A unit of a block, for use in a compact method.

  Where a block is recomputed, the inputs of its units are kept, and each unit
  is recomputed when the backward pass has come to it, not before.

  Args:
    fn: `(module, x) -> outputs`, a function of the module's own submodules.
  """
  if not RECOMPUTING.get():
    return fn
  again = nn.remat(fn)
  return lambda module, x: again(module, checkpoint_name(x, KEPT))


def materialise(x: Any) -> Any:
  """Keeps XLA from computing `x`, arrays, in everything that reads it.

  On CPU it would fuse the chain of residual sums, from the first unit to the
  last, into every reader of the last: half the time of a training step of
  ResNet-56. Backends that weigh what a fusion costs are left alone. Takes
  effect in programs that are compiled by `replicas.Program`. What is shipped
  is the same program wherever it was traced, and has none of it.
  """
  # A program for a CPU may be traced where a GPU is the default backend.
  device = jax.config.jax_default_device
  on_cpu = getattr(device, 'platform', jax.default_backend()) == 'cpu'
  if SHIPPING.get() or not on_cpu:
    return x
  return jax.lax.optimization_barrier(x)


class ConvNorm(nn.Module):
  """Convolution, normalisation and activation."""

  width: int
  kernel: int
  stride: int = 1
  activation: Callable[[Array], Array] = nn.relu
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: Array, train: bool) -> Array:
    x = conv(
      self.width, self.kernel, self.stride, dtype=self.dtype, name='conv'
    )(x)
    x = batch_norm(
      train, dtype=self.dtype, axis_name=self.axis_name, name='norm'
    )(x)
    return self.activation(x)


def pool_and_classify(
  x: Array, num_classes: int, normalized_input: Array | None = None
) -> HeadOutput:
  """Global average pooling and a dense layer, for use in a compact method.

  Both compute in float32: they are a vanishing part of the work, and losses
  want their logits unrounded.

  Args:
    x: `[batch, height, width, channels]`.
    num_classes: the number of logits.
    normalized_input: passed on.
  """
  pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
  classifier = nn.Dense(num_classes, kernel_init=DENSE_INIT, name='classifier')
  return HeadOutput(classifier(pooled), pooled, normalized_input)


class PoolingHead(nn.Module):
  """The head of the families whose blocks end with an activation."""

  num_classes: int

  @nn.compact
  def __call__(self, x: Array, train: bool) -> HeadOutput:
    del train  # Nothing in here depends on it.
    return pool_and_classify(x, self.num_classes)


POOLING_HEAD_WIRING = (Layer('classifier', 'input', None),)


class ConvHead(nn.Module):
  """The head of the families that widen once more: `last`, 1x1, before it."""

  num_classes: int
  last: nn.Module

  @nn.compact
  def __call__(self, x: Array, train: bool) -> HeadOutput:
    return pool_and_classify(self.last(x, train), self.num_classes)


CONV_HEAD_WIRING = (
  Layer('last/conv', 'input', 'hidden'),
  Layer('last/norm', None, 'hidden'),
  Layer('classifier', 'hidden', None),
)
