"""What a phase can't change, computed once and looked up in every step.

While a stage trains one block, everything before it and all of the teacher
stand still: of a fixed image their outputs are the same in every epoch. With
a fixed number of augmented views per image they are computed once, and a step
then costs the trained block and what lies above it.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from cbkd_jax import batch, collectives, step, storage
from cbkd_jax.blocks import Variables
from cbkd_jax.errors import Preempted
from cbkd_jax.replicas import Replicas, spmd
from cbkd_jax.spec import StepSpec
from cbkd_jax.step import Drawn, Resident, TrainState
from cbkd_jax.storage import Layout, Rows
from cbkd_jax.views import Frozen, equal_leaves, frozen_outputs


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a phase's cache would be.

  Attributes:
    layout: what is kept of the frozen outputs; nothing if it has no leaves.
    rows: views times examples.
    row_bytes: of one row.
  """

  layout: Layout
  rows: int
  row_bytes: int

  @property
  def bytes(self) -> int:
    """Of one copy."""
    return self.rows * self.row_bytes


@dataclasses.dataclass(frozen=True)
class Kept:
  """A filled cache.

  Attributes:
    plan: what it is.
    place: 'device' or 'host'.
    rows: arrays `[views * examples, ...]`, on every device or on the host.
    error: root mean square of what rounding changed, over that of the maps
      themselves.
    seconds: to fill it.
  """

  plan: Plan
  place: str
  rows: Rows
  error: float
  seconds: float

  def draw(self, spec: StepSpec, rows: np.ndarray) -> Drawn:
    """The replicas' batches.

    Args:
      spec: the phase.
      rows: `[devices, steps, local_batch]`.
    """
    if self.place == 'device':
      return Drawn(rows)
    first = jax.tree.map(lambda kept: kept[rows], self.rows)
    if 'second_view' not in spec.objective.needs:
      return Drawn(rows, first)
    examples = self.plan.rows // spec.fixed_views
    second = np.asarray(batch.second_rows(rows, examples, spec.fixed_views))
    return Drawn(rows, first, jax.tree.map(lambda k: k[second], self.rows))


def plan(spec: StepSpec, dtype: str, examples: int) -> Plan:
  """What the cache of a phase holds; nothing is computed.

  Args:
    spec: the phase, with `fixed_views`.
    dtype: of the maps, see `storage.Layout`.
    examples: in the train split.
  """
  same = equal_leaves(spec, *spec.shapes())
  layout = Layout(dtype, tuple((i, same[i]) for i in _used_leaves(spec)))
  rows = jax.tree.leaves(_row_shapes(spec, layout))
  row_bytes = sum(x.size * x.dtype.itemsize for x in rows)
  return Plan(layout, spec.fixed_views * examples, row_bytes)


def with_layout(spec: StepSpec, plan: Plan) -> StepSpec:
  """The spec of the steps that look up what a plan keeps."""
  return dataclasses.replace(spec, cache=plan.layout)


def row_shapes(spec: StepSpec, rows: int) -> Rows:
  """Shapes and types of a cache, of a spec that has one."""
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype),
    _row_shapes(spec, spec.cache),
  )


def _row_shapes(spec: StepSpec, layout: Layout) -> Rows:
  return jax.eval_shape(
    lambda s, t, x: storage.encode(layout, frozen_outputs(spec, s, t, x)),
    *spec.shapes(),
    jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32),
  )


def fill(
  plan: Plan,
  place: str,
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  data: Resident,
  *,
  replicas: Replicas,
  batch_size: int,
  interrupted: Callable[[], bool] = lambda: False,
) -> Kept:
  """Runs the frozen parts on every view of every image.

  Args:
    plan: the cache.
    place: 'device' or 'host'.
    spec: the phase.
    state: before the phase's first step, or any later one.
    teacher: the teacher's variables.
    data: the train split.
    replicas: the devices.
    batch_size: rows at once over all devices, rounded up to fill them.
    interrupted: says whether to stop.

  Returns:
    The cache; of `place='device'` a copy on every device.

  Raises:
    Preempted: `interrupted`.
  """
  began = time.monotonic()
  run = compiled_fill(with_layout(spec, plan), replicas)
  count = len(replicas.devices)
  local = max(1, math.ceil(min(batch_size, plan.rows) / count))
  found, changed, size = None, 0.0, 0.0
  for start in range(0, plan.rows, local * count):
    if interrupted():
      raise Preempted('stopped while the cache was filled')
    rows = np.arange(start, start + local * count)
    fresh = len(rows) - max(0, int(rows[-1]) - plan.rows + 1)
    # The last batch is filled up with its last row, dropped below.
    rows = np.minimum(rows, plan.rows - 1).astype(np.int32)
    rows = rows.reshape(count, local)[list(replicas.own)]
    out, errors = run(state, teacher, data, replicas.put_shares(rows))
    if found is None:
      found = jax.tree.map(
        lambda x: np.empty((plan.rows, *x.shape[1:]), x.dtype), out
      )
    end = start + fresh
    for whole, part in zip(jax.tree.leaves(found), jax.tree.leaves(out)):
      whole[start:end] = np.asarray(part)[:fresh]
    errors = np.asarray(errors, np.float64)[:fresh].sum(0)
    changed, size = changed + errors[0], size + errors[1]
  if place == 'device':
    found = jax.block_until_ready(replicas.put(found))
  error = math.sqrt(changed / size) if size else 0.0
  return Kept(plan, place, found, error, time.monotonic() - began)


@functools.cache
def compiled_fill(
  spec: StepSpec, replicas: Replicas
) -> Callable[..., tuple[Rows, jax.Array]]:
  """`(state, teacher, data, rows [devices, local_batch]) -> (rows, errors)`.

  The rows' arrays and `errors` begin with `[devices * local_batch]`; an error
  is the pair (sum of squares of what rounding changes in a row's maps, sum of
  squares of the maps).
  """

  def one(state, teacher, data, rows):
    x = batch.fixed_view(spec, state.rng, data.images, rows)
    frozen = frozen_outputs(spec, state.variables, teacher, x)
    kept = storage.encode(spec.cache, frozen)
    back = jax.tree.leaves(storage.decode(spec.cache, kept, frozen))
    errors = jnp.zeros((len(rows), 2))
    for i in {source: leaf for leaf, source in spec.cache.leaves}.values():
      before = jax.tree.leaves(frozen)[i].astype(jnp.float32)
      if storage.is_rounded(before):
        pair = before - back[i].astype(jnp.float32), before
        sums = [jnp.sum(x**2, axis=range(1, x.ndim)) for x in pair]
        errors += jnp.stack(sums, -1)
    return collectives.gather((kept, errors), spec.axis)

  return spmd(one, replicas, replicated=3)


@functools.cache
def _used_leaves(spec: StepSpec) -> tuple[int, ...]:
  """Which of the frozen outputs the loss depends on.

  Numbers in the order of the leaves of `frozen_outputs`. Found by following
  the loss's own operations back from its results.
  """
  setting = spec.objective.setting
  student, teacher = spec.shapes()
  batch = setting.micro_batch
  frozen = jax.eval_shape(
    functools.partial(frozen_outputs, spec),
    student,
    teacher,
    jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.float32),
  )
  again = 'second_view' in spec.objective.needs
  examples = max(setting.train_size, batch)
  data = Resident(
    jax.ShapeDtypeStruct((examples, *spec.image_shape), jnp.uint8),
    jax.ShapeDtypeStruct((examples,), jnp.int32),
  )

  def run(pair: tuple[Frozen, Frozen | None], state, teacher, data, rows):
    made = step.make_batch(spec, state, teacher, data, Drawn(rows))
    return step.loss(spec, state, teacher, made._replace(frozen=pair))

  axes = [] if spec.axis is None else [(spec.axis, setting.replicas)]
  trace = jax.make_jaxpr(run, axis_env=axes)
  jaxpr = trace(
    (frozen, frozen if again else None),
    step.state_shapes(spec),
    teacher,
    data,
    jax.ShapeDtypeStruct((batch,), jnp.int32),
  ).jaxpr
  used = _used_inputs(jaxpr)
  count = len(jax.tree.leaves(frozen))
  views = 2 if again else 1
  return tuple(
    i for i in range(count) if any(used[i + v * count] for v in range(views))
  )


def _used_inputs(jaxpr: Any) -> list[bool]:
  """Per input, whether any result may depend on it."""
  is_variable = jax.extend.core.Var
  live = {v for v in jaxpr.outvars if isinstance(v, is_variable)}
  for equation in reversed(jaxpr.eqns):
    if any(v in live for v in equation.outvars):
      live |= {v for v in equation.invars if isinstance(v, is_variable)}
  return [v in live for v in jaxpr.invars]
