"""The train step of every stage and the forward pass, on every replica.

`train_step` is one replica's step, pure, its cross-replica sums in sight.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbkd_jax import blocks, storage, supply
from cbkd_jax.blocks import Network, Tree, Variables, View
from cbkd_jax.data import flips, mixing
from cbkd_jax.data.augment import Augmentation, augment, normalise
from cbkd_jax.objectives.method import published_epoch
from cbkd_jax.replicas import AXIS, Replicas, spmd
from cbkd_jax.spec import StepSpec
from cbkd_jax.storage import Rows
from cbkd_jax.views import Frozen, frozen_outputs, views


class TrainState(NamedTuple):
  """Everything a stage changes.

  Attributes:
    step: steps taken in this stage, int32.
    params: a tree per part of the network, then the objective's own.
    batch_stats: a tree per part of the network.
    objective_state: the objective's variables that are not trained.
    opt_state: of the trained parts and the objective's parameters alone.
    rng: key data (uint32) of the stage; step t uses `fold_in(rng, t)`.
  """

  step: jax.Array
  params: tuple[Tree, ...]
  batch_stats: tuple[Tree, ...]
  objective_state: Tree
  opt_state: Tree
  rng: jax.Array

  @property
  def variables(self) -> Variables:
    return Variables(self.params[:-1], self.batch_stats)


class Resident(NamedTuple):
  """A train split, the same on every device.

  Attributes:
    images: uint8 `[examples, height, width, channels]`.
    labels: int32 `[examples]`.
    cache: rows of what the phase can't change, `[views * examples, ...]`;
      None where they are not kept on the devices.
  """

  images: jax.Array
  labels: jax.Array
  cache: Rows | None = None


class Drawn(NamedTuple):
  """A replica's share of a batch, or of several: then with a leading axis.

  Attributes:
    rows: int32 `[local_batch]`, the examples; with fixed views `view *
      examples + example`.
    cache: their rows of what the phase can't change, where these are kept on
      the host.
    again: likewise of their second views, if the objective needs them.
  """

  rows: jax.Array
  cache: Rows | None = None
  again: Rows | None = None


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


def state_shapes(
  spec: StepSpec, student: Variables, teacher: Variables | None
) -> TrainState:
  """Shapes and types of `create_train_state`, nothing computed.

  Args:
    spec: the stage.
    student: the network's variables, or their shapes.
    teacher: likewise; None where the objective has no use for a teacher.
  """
  return jax.eval_shape(
    lambda s, t: _new_state(spec, s, t, jax.random.key(0), None),
    student,
    teacher,
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
  batch = spec.objective.local_batch
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
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of one replica.

  Args:
    spec: the stage (static).
    state: the same on every replica.
    teacher: the teacher's variables; parts before `spec.shared` may be None.
    data: the whole train split.
    drawn: this replica's share of the batch.

  Returns:
    The new state, and metrics over the global batch: 'loss', each term by its
    key, 'accuracy', 'grad_norm' (before clipping, of what is trained).
  """
  trained = (*spec.trained, True)
  batch = make_batch(spec, state, teacher, data, drawn)

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
  grads = jax.lax.pmean(grads, AXIS)
  accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.available['labels'])
  metrics = {'loss': value, **terms, 'accuracy': accuracy}
  metrics = jax.lax.pmean(metrics, AXIS)
  metrics['grad_norm'] = optax.tree.norm(grads)
  if not spec.sync_batch_norm:
    # Of what is frozen too, the mean over replicas could differ by rounding.
    batch_stats = tuple(
      jax.lax.pmean(s, AXIS) if t else s
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


class Batch(NamedTuple):
  """What a replica's loss is a function of, besides the variables.

  Attributes:
    x: normalised images `[local_batch, height, width, channels]`.
    again: the same examples, augmented a second time; None if not needed.
    frozen: the outputs that the phase can't change, of `x` and of `again`;
      None where they are computed.
    available: what objectives may need, by name, see `AVAILABLE`.
  """

  x: jax.Array
  again: jax.Array | None
  frozen: tuple[Frozen | None, Frozen | None]
  available: dict[str, Any]


def make_batch(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  data: Resident,
  drawn: Drawn,
) -> Batch:
  """A replica's batch, from the resident split and what is kept."""
  # Randomness is keyed by the step and by the example's position in the
  # global batch: it does not depend on how many replicas share the batch.
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  local_batch = drawn.rows.shape[0]
  positions = jnp.arange(local_batch) + local_batch * jax.lax.axis_index(AXIS)
  indices, mixed, frozen = drawn.rows, None, (None, None)
  if spec.fixed_views is None:
    x, again, mixed = _new_views(spec, state, data, indices, positions, rng)
  else:
    indices = drawn.rows % len(data.images)
    second = second_rows(drawn.rows, len(data.images), spec.fixed_views)
    x = fixed_view(spec, state.rng, data.images, drawn.rows)
    again = None
    if 'second_view' in spec.objective.needs:
      again = fixed_view(spec, state.rng, data.images, second)
    frozen = _kept(spec, state, teacher, data, drawn, second)
  available = {
    'labels': data.labels[indices],
    'mixed': mixed,
    'indices': indices,
    'step': state.step,
    'train_labels': data.labels,
  }
  available |= _supplies(spec, state, teacher, rng, positions)
  return Batch(x, again, frozen, available)


def _new_views(
  spec: StepSpec,
  state: TrainState,
  data: Resident,
  indices: jax.Array,
  positions: jax.Array,
  rng: jax.Array,
) -> tuple[jax.Array, jax.Array | None, Any]:
  """Images augmented as never before: the first view, the second, and 'mixed'.

  The second is None where the objective doesn't need it; for 'mixed' see
  `AVAILABLE`.
  """

  def show(indices, positions, rng, second=False):
    mirrored = None
    if spec.augmentation.alternating_flip:
      batch_size = len(positions) * jax.lax.axis_size(AXIS)
      mirrored = flips.alternating(
        jax.random.wrap_key_data(state.rng),
        state.step,
        indices,
        positions,
        batch_size,
        len(data.images),
      )
      mirrored ^= second  # two looks at an image are both ways round
    images = data.images[indices]
    return augment(images, rng, positions, spec.augmentation, mirrored)

  x, again, mixed = show(indices, positions, rng), None, None
  if spec.augmentation.mixes:
    # A partner's image is made anew, as its own slot shows it: it may be
    # another replica's.
    partners = mixing.partners(rng, indices, positions, AXIS)
    weights, share = mixing.weights(rng, spec.augmentation, *x.shape[1:3])
    x = mixing.mix(x, show(*partners, rng), weights)
    mixed = data.labels[partners.indices], share
  if 'second_view' in spec.objective.needs:
    again = show(indices, positions, supply.second_key(rng), second=True)
  return x, again, mixed


def second_rows(rows: Any, examples: int, fixed_views: int) -> Any:
  """The same examples, in the view after the one that is drawn."""
  # The last view's by subtraction: a sum might not fit into 32 bits.
  last = examples * (fixed_views - 1)
  return rows + jnp.where(rows >= last, -last, examples)


def fixed_view(
  spec: StepSpec, rng: jax.Array, images: jax.Array, rows: jax.Array
) -> jax.Array:
  """Images in one of the fixed views of a phase.

  Args:
    spec: the phase.
    rng: key data, of the state.
    images: the whole train split, uint8.
    rows: `[batch]`, `view * examples + example`.

  Returns:
    Normalised images `[batch, height, width, channels]`, a function of row
    and phase alone.
  """
  key = supply.fixed_key(jax.random.wrap_key_data(rng))
  return augment(images[rows % len(images)], key, rows, spec.augmentation)


def _kept(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  data: Resident,
  drawn: Drawn,
  second: jax.Array,
) -> tuple[Frozen | None, Frozen | None]:
  """The frozen outputs of the batch's two views, as far as they are kept."""
  if spec.cache is None:
    return None, None
  shape = (len(drawn.rows), *spec.image_shape)
  shapes = jax.eval_shape(
    lambda x: frozen_outputs(spec, state.variables, teacher, x),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )

  def look_up(rows: jax.Array, given: Rows | None) -> Frozen:
    if data.cache is not None:
      given = jax.tree.map(lambda kept: kept[rows], data.cache)
    return storage.decode(spec.cache, given, shapes)

  first = look_up(drawn.rows, drawn.cache)
  if 'second_view' not in spec.objective.needs:
    return first, None
  return first, look_up(second, drawn.again)


def loss(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  batch: Batch,
) -> tuple[jax.Array, tuple[Any, ...]]:
  """What a replica minimises, over its share of a batch.

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


def _supplies(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  rng: jax.Array,
  positions: jax.Array,
) -> dict[str, Any]:
  """What the objective needs beyond views and batch, see `supply`."""
  objective, found = spec.objective, {}
  if 'epoch' in objective.needs:
    found['epoch'] = published_epoch(objective.setting, state.step)
  if 'keys' in objective.needs:
    found['keys'] = supply.example_keys(rng, positions)
  if 'teacher_head' in objective.needs or objective.predictor:
    found['teacher_head'] = supply.teacher_head(spec.teacher, teacher)
  if 'teacher_classifier' in objective.needs:
    found['teacher_classifier'] = supply.teacher_classifier(teacher)
  if 'teacher_norms' in objective.needs:
    # The shared parts may be in the student's tree alone.
    own, rest = state.params[: spec.shared], teacher.params[spec.shared :]
    found['teacher_norms'] = supply.teacher_norms(spec.teacher, (*own, *rest))
  return found


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
    return train_step(spec, state, teacher, data, one)

  steps = len(drawn.rows)
  if steps == 1:  # a scan of one step would still be a loop
    state, metrics = body(state, jax.tree.map(lambda x: x[0], drawn))
    return state, jax.tree.map(lambda x: x[None], metrics)
  return jax.lax.scan(body, state, drawn, unroll=steps if unroll else 1)


def forward(
  network: Network,
  augmentation: Augmentation,
  variables: Variables,
  images: jax.Array,
  indices: jax.Array,
) -> jax.Array:
  """Eval-mode logits `[local_batch, classes]` of `images[indices]`."""
  x = normalise(images[indices], augmentation)
  return blocks.logits(network, variables, x)


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
  return spmd(fn, replicas, replicated=3, summed=True, donate=(0,))


@functools.cache
def compiled_forward(
  network: Network, augmentation: Augmentation, replicas: Replicas
) -> Callable[..., jax.Array]:
  """`(variables, images, indices [devices, local_batch]) -> logits`.

  Logits are `[devices, local_batch, classes]`.
  """
  fn = functools.partial(forward, network, augmentation)
  return spmd(fn, replicas, replicated=2, summed=False)


def merge(
  mask: Sequence[bool], chosen: Sequence[Tree], others: Sequence[Tree]
) -> tuple[Tree, ...]:
  """`chosen` (a tuple of the masked entries) in their places in `others`."""
  remaining = iter(chosen)
  return tuple(next(remaining) if m else o for m, o in zip(mask, others))
