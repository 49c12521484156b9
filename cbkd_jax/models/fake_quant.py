"""Layers that compute, in floating point, what they would compute in int8.

Rounded to 8 bits are the kernels and the inputs of convolutions and dense
layers, as in Jacob et al. (2018, arXiv:1712.05877); what is cheap beside them
(biases, normalisations, attention itself) is not. Gradients go through the
rounding as if it were not there: straight through (Bengio et al., 2013).

The grids are those of an exported file. A kernel has one scale per output
channel and none of its numbers is shifted, so its grid may be chosen before a
batch normalisation is folded into it: that multiplies each output channel by a
factor, and so its scale by the factor's size; the integers stay as they are,
but for a sign, and from -127 to 127 there is one for each. (With one scale for
all channels, or with -128, they would not stay.)
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import Array, Tree

KERNEL_MOST = 127  # the largest integer of a kernel, and minus the smallest
INPUT_STEPS = 255  # between the smallest and the largest of an input

Ranges = tuple[tuple[str, float, float], ...]


@jax.custom_jvp
def round_kernel(kernel: Array) -> Array:
  """A kernel in 8 bits, with a scale per output channel.

  Args:
    kernel: `[..., output channels]`, float32.

  Returns:
    Integers from -127 to 127 times their channel's scale, the largest of them
    127 or -127. Its gradient is that of the kernel itself.
  """
  axes = tuple(range(kernel.ndim - 1))
  scale = jnp.max(jnp.abs(kernel), axes, keepdims=True) / KERNEL_MOST
  scale = jnp.where(scale > 0, scale, 1)
  return jnp.round(kernel / scale) * scale


@round_kernel.defjvp
def _round_kernel_jvp(primals, tangents):
  return round_kernel(*primals), tangents[0]


@jax.custom_jvp
def round_input(x: Array, low: Array, high: Array) -> Array:
  """A layer's input in 8 bits; 0, by which images are padded, is exact.

  Args:
    x: of any shape.
    low: a number of float32; what is below is set to it.
    high: likewise the largest. 0 is made to lie between the two.

  Returns:
    `x` on a grid of 256 numbers, in its own type. Its gradient is that of `x`
    itself.
  """
  low, high = jnp.minimum(low, 0), jnp.maximum(high, 0)
  scale = (high - low) / INPUT_STEPS
  scale = jnp.where(scale > 0, scale, 1)
  zero = jnp.round(-low / scale)
  steps = jnp.round(x.astype(jnp.float32) / scale) + zero
  return ((jnp.clip(steps, 0, INPUT_STEPS) - zero) * scale).astype(x.dtype)


@round_input.defjvp
def _round_input_jvp(primals, tangents):
  return round_input(*primals), tangents[0]


@dataclasses.dataclass(frozen=True)
class Quantized:
  """A part whose layers compute as in int8; else it is the part.

  In train mode an input's range is that of the batch: nothing is kept, and
  what is exported is calibrated anew. In eval mode it is the one that is
  known; where none is, nothing is rounded: it is the float network.

  Attributes:
    part: the Linen module.
    axis_name: the replicas' axis, to take ranges over the global batch; None
      takes them over the replica's own.
    ranges: (name of a layer, its input's smallest and largest number), from
      `Observed`; for eval mode.
  """

  part: Any
  axis_name: str | None = None
  ranges: Ranges | None = None

  def apply(self, variables: Tree, x: Array, train: bool, **more: Any) -> Any:
    """The module's own, of rounded kernels and inputs."""
    if not train and self.ranges is None:
      return self.part.apply(variables, x, train=train, **more)
    known = {name: limits for name, *limits in self.ranges or ()}

    def rounded(name: str, x: Array) -> Array:
      return round_input(x, *(self._limits(x) if train else known[name]))

    params = jax.tree.map_with_path(
      lambda path, leaf: round_kernel(leaf) if _is_kernel(path) else leaf,
      variables['params'],
    )
    with nn.intercept_methods(_on_inputs(rounded)):
      return self.part.apply(
        {**variables, 'params': params}, x, train=train, **more
      )

  def _limits(self, x: Array) -> tuple[Array, Array]:
    low, high = limits(jax.lax.stop_gradient(x))
    if self.axis_name is None:
      return low, high
    low = jax.lax.pmin(low, self.axis_name)
    return low, jax.lax.pmax(high, self.axis_name)

  def init_with_output(self, *args: Any, **kwargs: Any) -> Any:
    """The module's own."""
    return self.part.init_with_output(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Observed:
  """A part that also says what its layers are given; nothing is rounded."""

  part: Any

  def apply(
    self, variables: Tree, x: Array, **kwargs: Any
  ) -> tuple[Any, dict[str, tuple[Array, Array]]]:
    """The module's output, and (smallest, largest) input by layer."""
    found: dict[str, tuple[Array, Array]] = {}

    def seen(name: str, x: Array) -> Array:
      low, high = limits(x)
      if name in found:  # an `expand` may run twice
        low = jnp.minimum(low, found[name][0])
        high = jnp.maximum(high, found[name][1])
      found[name] = low, high
      return x

    with nn.intercept_methods(_on_inputs(seen)):
      return self.part.apply(variables, x, **kwargs), found


def limits(x: Array) -> tuple[Array, Array]:
  """The smallest and the largest number of `x`, float32."""
  x = x.astype(jnp.float32)
  return jnp.min(x), jnp.max(x)


def _is_kernel(path: tuple[Any, ...]) -> bool:
  return path[-1].key == 'kernel'


def _on_inputs(fn: Callable[[str, Array], Array]) -> Callable[..., Any]:
  """Puts `fn(name, input)` in the place of every layer's input."""

  def intercept(call, args, kwargs, context):
    if isinstance(context.module, nn.Conv | nn.Dense):
      name = '/'.join(context.module.path)
      if args:
        args = fn(name, args[0]), *args[1:]
      else:
        kwargs = {**kwargs, 'inputs': fn(name, kwargs['inputs'])}
    return call(*args, **kwargs)

  return intercept
