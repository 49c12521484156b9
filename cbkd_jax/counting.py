"""What networks and steps cost, from shapes alone: nothing is computed."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cbkd_jax import blocks, step
from cbkd_jax.blocks import Network, Tree, Variables


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
  variables = blocks.shapes(network, image_shape)
  x = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  costs = []
  for i, part in enumerate(network.parts):
    part_variables = {
      'params': variables.params[i],
      'batch_stats': variables.batch_stats[i],
    }
    fn = jax.jit(lambda v, x, part=part: part.apply(v, x, train=False))
    lowered = fn.lower(part_variables, x)
    out = jax.eval_shape(fn, part_variables, x)
    x = getattr(out, 'output', None)
    params = variables.params[i]
    costs.append(
      {
        'params': blocks.count_params(params),
        'flops_per_example': float(lowered.cost_analysis()['flops']),
        'bytes': tree_bytes(params),
      }
    )
  head = costs.pop()
  costs[-1] = {key: costs[-1][key] + head[key] for key in head}
  return costs


def total(costs: Sequence[dict[str, float]]) -> dict[str, float]:
  """The sum over blocks."""
  return {key: sum(cost[key] for cost in costs) for key in costs[0]}


def tree_bytes(tree: Tree) -> int:
  """Bytes of all arrays in `tree`."""
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def stage_memory(spec: step.StepSpec, local_batch: int) -> int:
  """An estimate of a step's memory on one device, in bytes.

  Counts the state, the teacher's remaining parts, the gradients, and what the
  backward pass keeps of the forward pass; not the data set, nor what XLA
  needs besides or saves by fusing.

  Args:
    spec: the stage, built without a replicas' axis.
    local_batch: examples per device and step.
  """
  student = blocks.shapes(spec.student, spec.image_shape)
  teacher = student
  if spec.teacher is not None:
    teacher = blocks.shapes(spec.teacher, spec.image_shape)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(
    lambda s, t, k: step.create_train_state(spec, s, t, k),
    student,
    teacher,
    key,
  )
  x = jax.ShapeDtypeStruct((local_batch, *spec.image_shape), jnp.float32)
  trained = tuple(p for p, t in zip(student.params, spec.trained) if t)

  def forward(trained, student, teacher, x):
    params = step.merge(spec.trained, trained, student.params)
    views = step.views(
      spec,
      Variables(params, student.batch_stats),
      teacher,
      x,
      spec.trained,
    )
    return views[0]

  def residuals(trained: Any, student: Any, teacher: Any, x: Any):
    _, backward = jax.vjp(lambda t: forward(t, student, teacher, x), trained)
    return jax.tree.leaves(backward)

  # What is kept includes the parameters themselves; they are counted once.
  kept = jax.eval_shape(residuals, trained, student, teacher, x)
  kept = [leaf for leaf in kept if leaf.shape[:1] == (local_batch,)]
  rest = jax.tree.leaves(teacher.params[spec.shared :])
  if spec.teacher is None:
    rest = []
  return (
    tree_bytes(state)
    + tree_bytes(trained)
    + tree_bytes(rest)
    + tree_bytes(kept)
  )
