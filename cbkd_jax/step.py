"""The train step of every stage and the forward pass, on every replica.

`train_step` is one replica's step, pure, its cross-replica sums in sight.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cbkd_jax import accumulation, blocks, collectives
from cbkd_jax.batch import Batch, Drawn, Examples, Resident, make_batch
from cbkd_jax.blocks import Network, Tree, Variables, View
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.replicas import Replicas, spmd
from cbkd_jax.spec import StepSpec
from cbkd_jax.state import TrainState
from cbkd_jax.views import Frozen, views


def create_train_state(
  spec: StepSpec,
  student: Variables,
  teacher: Variables | None,
  rng: jax.Array,
  previous: tuple[Tree, Tree] | None = None,
) -> TrainState:
  """The state before a stage's first step.

  Args:
    spec: the stage.
    student: the network's variables. They are copied: the step donates its
      state, and a hybrid's frozen parts are the teacher's own arrays.
    teacher: the teacher's variables; None where the objective has no use
      for a teacher.
    rng: the key of the stage's randomness.
    previous: the objective's (params, state) of the phase before; a method
      may go on with them.

  Returns:
    The state, on the default device.
  """
  student = jax.tree.map(jnp.array, student)
  return _create(spec, student, teacher, rng, previous)


@functools.cache
def state_shapes(spec: StepSpec) -> TrainState:
  """Shapes and types of `create_train_state`, nothing computed.

  Args:
    spec: the stage.
  """
  return jax.eval_shape(
    lambda s, t: _new_state(spec, s, t, jax.random.key(0), None),
    *spec.shapes(),
  )


def _create(spec, student, teacher, rng, previous):
  return _compiled_create(jax.default_backend() == 'cpu')(
    spec, student, teacher, rng, previous
  )


@functools.cache
def _compiled_create(on_cpu: bool) -> Callable[..., TrainState]:
  # Much to compile and little to run, like `blocks.init`.
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  return jax.jit(_new_state, static_argnums=0, compiler_options=options)


def _new_state(spec, student, teacher, rng, previous):
  batch = spec.objective.micro_batch
  student_view, teacher_view, _ = jax.eval_shape(
    lambda s, t, x: views(spec, s, t, x, (False,) * len(spec.trained)),
    student,
    teacher,
    jax.ShapeDtypeStruct((batch, *spec.image_shape), jnp.float32),
  )
  params, state = spec.objective.init(
    jax.random.fold_in(rng, 1), student_view, teacher_view
  )
  if previous is not None:
    params, state = spec.objective.adopt((params, state), previous)
  params = (*student.params, params)
  return TrainState(
    step=jnp.int32(0),
    params=params,
    batch_stats=student.batch_stats,
    objective_state=state,
    opt_state=spec.tx.init(params),
    rng=jax.random.key_data(jax.random.fold_in(rng, 0)),
  )


def train_step(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  data: Resident,
  drawn: Drawn,
  unroll: bool = False,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of one replica.

  Of several micro-batches each runs forward and backward by itself; batch
  statistics and the objective's state go from one to the next, and the step
  follows the mean of the gradients.

  Args:
    spec: the stage (static).
    state: the same on every replica.
    teacher: the teacher's variables; parts before `spec.shared` may be None.
    data: the whole train split.
    drawn: this replica's share of the batch.
    unroll: whether micro-batches avoid a loop, see `train_steps`.

  Returns:
    The new state, and metrics over the global batch: 'loss', each term by its
    key, 'accuracy', 'grad_norm' (before clipping, of what is trained).
  """
  trained = (*spec.trained, True)
  (batch_stats, objective_state), (grads, metrics) = accumulation.mean(
    functools.partial(_differentiate, spec, state, teacher),
    (state.batch_stats, state.objective_state),
    make_batch(spec, state, teacher, data, drawn),
    spec.micro_batches,
    unroll,
  )
  grads = collectives.mean(grads, spec.axis)
  metrics = collectives.mean(metrics, spec.axis)
  metrics['grad_norm'] = optax.tree.norm(grads)
  if not spec.sync_batch_norm:
    # Of what is frozen too, the mean over replicas could differ by rounding.
    batch_stats = tuple(
      collectives.mean(s, spec.axis) if t else s
      for s, t in zip(batch_stats, spec.trained)
    )

  zeros = jax.tree.map(jnp.zeros_like, state.params)
  updates, opt_state = spec.tx.update(
    merge(trained, grads, zeros), state.opt_state, state.params
  )
  params = tuple(
    optax.apply_updates(p, u) if t else p
    for p, u, t in zip(state.params, updates, trained)
  )
  state = TrainState(
    step=state.step + 1,
    params=params,
    batch_stats=batch_stats,
    objective_state=objective_state,
    opt_state=opt_state,
    rng=state.rng,
  )
  return state, metrics


def _differentiate(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  carried: tuple[tuple[Tree, ...], Tree],
  batch: Batch,
) -> tuple[tuple[tuple[Tree, ...], Tree], tuple[tuple[Tree, ...], Any]]:
  """A (micro-)batch's `(carried, (gradients of what trains, metrics))`.

  `carried` are the student's batch_stats and the objective's state.
  """
  trained = (*spec.trained, True)
  batch_stats, objective_state = carried
  state = state._replace(
    batch_stats=batch_stats, objective_state=objective_state
  )

  def loss_fn(trained_params):
    params = merge(trained, trained_params, state.params)
    return loss(spec, state._replace(params=params), teacher, batch)

  # Only trained parameters are differentiated; the optimiser's mask then
  # says the same thing once more, for its state, decay and clipping.
  trained_params = tuple(p for p, t in zip(state.params, trained) if t)
  (value, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(
    trained_params
  )
  terms, objective_state, batch_stats, logits = aux
  accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.available['labels'])
  metrics = {'loss': value, **terms, 'accuracy': accuracy}
  return (batch_stats, objective_state), (grads, metrics)


def loss(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  batch: Batch,
) -> tuple[jax.Array, tuple[Any, ...]]:
  """What a replica minimises, over its share of a batch or a part of that.

  Args:
    spec: the phase.
    state: before the step.
    teacher: the teacher's variables.
    batch: this replica's.

  Returns:
    The scalar, and (terms and metrics by name, the objective's new state, the
    student's new batch_stats, its logits).
  """
  look = functools.partial(_look, spec, state, teacher, batch.available)
  student_view, teacher_view, batch_stats = look(
    batch.x, state.batch_stats, batch.frozen[0]
  )
  supplied = dict(batch.available)
  if batch.again is not None:
    *second, batch_stats = look(batch.again, batch_stats, batch.frozen[1])
    supplied['second_view'] = tuple(second)
  value, (terms, objective_state) = spec.objective.loss(
    state.params[-1],
    state.objective_state,
    student_view,
    teacher_view,
    supplied,
  )
  return value, (terms, objective_state, batch_stats, student_view.logits)


def _look(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  available: dict[str, Any],
  x: jax.Array,
  batch_stats: tuple[Tree, ...],
  frozen: Frozen | None,
) -> tuple[View, View | None, tuple[Tree, ...]]:
  """`views` in training, with the logits that the student predicts by."""
  own = Variables(state.params[:-1], batch_stats)
  student_view, teacher_view, batch_stats = views(
    spec, own, teacher, x, spec.trained, frozen
  )
  if spec.objective.predictor:
    logits = spec.objective.predict(
      state.params[-1],
      state.objective_state,
      student_view,
      available['teacher_head'],
    )
    student_view = student_view._replace(logits=logits)
  return student_view, teacher_view, batch_stats


def train_steps(
  spec: StepSpec,
  unroll: bool,
  state: TrainState,
  teacher: Variables | None,
  data: Resident,
  drawn: Drawn,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`train_step` for each row of `drawn`, `rows [steps, local_batch]`.

  Metrics gain a leading axis of steps. `unroll` avoids a loop: XLA's CPU
  backend runs convolutions inside one many times slower.
  """

  def body(state, one):
    return train_step(spec, state, teacher, data, one, unroll)

  steps = len(drawn.rows)
  if steps == 1:  # a scan of one step would still be a loop
    state, metrics = body(state, jax.tree.map(lambda x: x[0], drawn))
    return state, jax.tree.map(lambda x: x[None], metrics)
  return jax.lax.scan(body, state, drawn, unroll=steps if unroll else 1)


def forward(
  network: Network,
  augmentation: Augmentation,
  axis: str | None,
  variables: Variables,
  examples: Examples,
) -> tuple[jax.Array, jax.Array]:
  """Eval-mode logits `[batch, classes]` and the labels `[batch]`, of all."""
  x = normalise(examples.images, augmentation)
  logits = blocks.logits(network, variables, x)
  return collectives.gather((logits, examples.labels), axis)


@functools.cache
def compiled_train(
  spec: StepSpec, replicas: Replicas
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
  """`(state, teacher, data, drawn) -> (state, metrics)`.

  The arrays of `drawn` begin with `[devices, steps, local_batch]`; the state
  is donated.
  """
  unroll = replicas.devices[0].platform == 'cpu'
  fn = functools.partial(train_steps, spec, unroll)
  return spmd(
    fn, replicas, replicated=3, batch_axis=1, donate=(0,), keeps_state=True
  )


@functools.cache
def compiled_forward(
  network: Network, augmentation: Augmentation, replicas: Replicas
) -> Callable[..., tuple[jax.Array, jax.Array]]:
  """`(variables, examples [devices, local_batch]) -> (logits, labels)`.

  Logits are `[devices * local_batch, classes]`, whole on every device.
  """
  fn = functools.partial(forward, network, augmentation, replicas.axis)
  return spmd(fn, replicas, replicated=1)


def merge(
  mask: Sequence[bool], chosen: Sequence[Tree], others: Sequence[Tree]
) -> tuple[Tree, ...]:
  """`chosen` (a tuple of the masked entries) in their places in `others`."""
  remaining = iter(chosen)
  return tuple(next(remaining) if m else o for m, o in zip(mask, others))
