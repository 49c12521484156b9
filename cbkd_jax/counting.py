"""What networks and steps cost, from shapes alone: nothing is computed."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cbkd_jax import blocks, cache, step
from cbkd_jax.blocks import Network, Tree

KINDS = ('params', 'flops_per_example', 'bytes')


def per_block(
  network: Network, image_shape: Sequence[int]
) -> list[dict[str, float]]:
  """Cost of each block in eval mode, the head counted with the deepest.

  Args:
    network: the network.
    image_shape: (height, width, channels).

  Returns:
    Per block 'params' (trainable ones), 'flops_per_example' (XLA's count of
    the forward pass, 2 per multiply-add) and 'bytes' (of the parameters).
  """
  shape, costs = (1, *image_shape), []
  for part in network.parts:
    costs.append({kind: part_cost(part, shape, kind) for kind in KINDS})
    shape = blocks.part_shapes(part, shape)[1]
  head = costs.pop()
  costs[-1] = {key: costs[-1][key] + head[key] for key in head}
  return costs


def part_cost(part: Any, shape: tuple[int, ...], kind: str) -> float:
  """One of `KINDS` of a block or head, on an input of `shape`."""
  if kind == 'flops_per_example':
    return _flops(part, shape)
  params = blocks.part_shapes(part, shape)[0]['params']
  return blocks.count_params(params) if kind == 'params' else tree_bytes(params)


@functools.cache
def _flops(part: Any, shape: tuple[int, ...]) -> float:
  """XLA's count for a part on an input of `shape`."""
  variables, _ = blocks.part_shapes(part, shape)
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  fn = jax.jit(lambda v, x: part.apply(v, x, train=False))
  with jax.default_device(_cpu()):
    lowered = fn.lower(variables, x)
  # Backends behind a plugin (GPUs, TPUs) count compiled programs only.
  cost = lowered.cost_analysis() or lowered.compile().cost_analysis()
  return float(cost['flops'])


def _cpu() -> Any:
  """A CPU device, which counts without compiling, or None."""
  try:
    return jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves it out
    return None


def total(costs: Sequence[dict[str, float]]) -> dict[str, float]:
  """The sum over blocks."""
  return {key: sum(cost[key] for cost in costs) for key in costs[0]}


def step_flops(spec: step.StepSpec, batch: int, train_size: int) -> float:
  """XLA's count of a training step, per example, 2 per multiply-add.

  Of the optimised program: what is dead or done twice is gone. The program is
  compiled, but its machine code is not optimised, which takes most of the
  time. It is compiled for a CPU where there is one, as there is beside every
  GPU: there, convolutions are calls of a library, which XLA does not count.

  Args:
    spec: the phase.
    batch: examples in the step.
    train_size: examples in the train split.
  """
  device = _cpu() or jax.local_devices()[0]
  with jax.default_device(device):
    compiled = _compiled_step(spec, device, batch, train_size)
  return float(compiled.cost_analysis()['flops']) / batch


def _compiled_step(
  spec: step.StepSpec, device: Any, batch: int, train_size: int
) -> jax.stages.Compiled:
  replicas = step.Replicas('shard_map', (device,))
  program = step.compiled_train(spec, replicas)
  rows = None
  if spec.cache is not None:
    rows = cache.row_shapes(spec, spec.fixed_views * train_size)
  lowered = program.lower(
    step.state_shapes(spec),
    spec.shapes()[1],
    step.Resident(
      jax.ShapeDtypeStruct((train_size, *spec.image_shape), jnp.uint8),
      jax.ShapeDtypeStruct((train_size,), jnp.int32),
      rows,
    ),
    step.Drawn(jax.ShapeDtypeStruct((1, 1, batch), jnp.int32)),
  )
  options = {**(program.options or {}), 'xla_backend_optimization_level': 0}
  return lowered.compile(options)


def tree_bytes(tree: Tree) -> int:
  """Bytes of all arrays in `tree`."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))
