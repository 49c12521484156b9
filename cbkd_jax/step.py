"""The train step of every stage and the forward pass, on every replica.

`train_step` is one replica's step, pure, its cross-replica sums in sight.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cbkd_jax import blocks, supply
from cbkd_jax.blocks import Network, Tree, Variables, View
from cbkd_jax.data import flips, mixing
from cbkd_jax.data.augment import Augmentation, augment, normalise
from cbkd_jax.objectives import Objective
from cbkd_jax.objectives.method import published_epoch
from cbkd_jax.optimizer import make_optimizer
from cbkd_jax.replicas import AXIS, Replicas, spmd
from cbkd_jax.stages import Training


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


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """What is static in a stage's step; equal specs share one program.

  Attributes:
    student: the stage's network (a hybrid, or the folded student).
    teacher: the teacher's network; None where the objective has no use for
      one.
    objective: what is minimised.
    training: optimiser and schedule.
    trained: per part of the student, whether it trains.
    shared: leading parts that are the teacher's own and frozen.
    augmentation: of the images.
    image_shape: (height, width, channels).
    sync_batch_norm: whether batch statistics are those of the global batch.
  """

  student: Network
  teacher: Network | None
  objective: Objective
  training: Training
  trained: tuple[bool, ...]
  shared: int
  augmentation: Augmentation
  image_shape: tuple[int, int, int]
  sync_batch_norm: bool = True

  @property
  def tx(self) -> optax.GradientTransformation:
    rates = self.objective.learning_rates()
    return make_optimizer(self.training, (*self.trained, True), rates)


def views(
  spec: StepSpec,
  student: Variables,
  teacher: Variables | None,
  x: jax.Array,
  train: Sequence[bool],
) -> tuple[View, View | None, tuple[Tree, ...]]:
  """Student's view, teacher's view and the student's batch_stats afterwards.

  The shared prefix runs once, for both. It is frozen, so everything that
  reaches the first trained part is a constant of the differentiation: no
  backward pass goes below that part.
  """
  shared = spec.shared
  prefix, _ = blocks.run(spec.student, student, x, stop=shared)
  if shared:
    x = prefix[-1].output
  prefix, x = jax.lax.stop_gradient((prefix, x))
  teacher_view = None
  if spec.teacher is not None:
    rest, _ = blocks.run(spec.teacher, teacher, x, start=shared)
    teacher_view = jax.lax.stop_gradient(blocks.view([*prefix, *rest]))
  rest, batch_stats = blocks.run(
    spec.student, student, x, train=train, start=shared
  )
  return blocks.view([*prefix, *rest]), teacher_view, batch_stats


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
    lambda s, t: create_train_state(spec, s, t, jax.random.key(0)),
    student,
    teacher,
  )


@functools.partial(jax.jit, static_argnums=0)
def _create(spec, student, teacher, rng, previous):
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
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of one replica.

  Args:
    spec: the stage (static).
    state: the same on every replica.
    teacher: the teacher's variables; parts before `spec.shared` may be None.
    images: the whole train split, `[examples, height, width, channels]` uint8.
    labels: `[examples]`.
    indices: `[local_batch]`, this replica's share of the batch.

  Returns:
    The new state, and metrics over the global batch: 'loss', each term by its
    key, 'accuracy', 'grad_norm' (before clipping, of what is trained).
  """
  x, again, available = _inputs(spec, state, teacher, images, labels, indices)
  trained = (*spec.trained, True)

  def loss_fn(trained_params):
    params = merge(trained, trained_params, state.params)
    look = functools.partial(
      _look, spec, params, state.objective_state, teacher, available
    )
    student_view, teacher_view, batch_stats = look(x, state.batch_stats)
    supplied = dict(available)
    if again is not None:
      *second, batch_stats = look(again, batch_stats)
      supplied['second_view'] = tuple(second)
    loss, (terms, objective_state) = spec.objective.loss(
      params[-1], state.objective_state, student_view, teacher_view, supplied
    )
    return loss, (terms, objective_state, batch_stats, student_view.logits)

  # Only trained parameters are differentiated; the optimiser's mask then
  # says the same thing once more, for its state, decay and clipping.
  trained_params = tuple(p for p, t in zip(state.params, trained) if t)
  (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained_params)
  terms, objective_state, batch_stats, logits = aux
  grads = jax.lax.pmean(grads, AXIS)
  accuracy = jnp.mean(jnp.argmax(logits, -1) == available['labels'])
  metrics = {'loss': loss, **terms, 'accuracy': accuracy}
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


def _inputs(
  spec: StepSpec,
  state: TrainState,
  teacher: Variables | None,
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
) -> tuple[jax.Array, jax.Array | None, dict[str, Any]]:
  """What a step looks at; arguments as those of `train_step`.

  Returns:
    The networks' input `[local_batch, height, width, channels]`; the same
    examples augmented a second time, or None; what the objective may ask for,
    by name.
  """
  # Randomness is keyed by the step and by the example's position in the
  # global batch: it does not depend on how many replicas share the batch.
  phase_rng = jax.random.wrap_key_data(state.rng)
  rng = jax.random.fold_in(phase_rng, state.step)
  local_batch = indices.shape[0]
  positions = jnp.arange(local_batch) + local_batch * jax.lax.axis_index(AXIS)

  def show(indices, positions, rng, second=False):
    mirrored = None
    if spec.augmentation.alternating_flip:
      batch_size = local_batch * jax.lax.axis_size(AXIS)
      mirrored = flips.alternating(
        phase_rng, state.step, indices, positions, batch_size, len(images)
      )
      mirrored ^= second  # two looks at an image are both ways round
    return augment(images[indices], rng, positions, spec.augmentation, mirrored)

  own_labels = labels[indices]
  x, mixed = show(indices, positions, rng), None
  if spec.augmentation.mixes:
    # A partner's image is made anew, as its own slot shows it: it may be
    # another replica's.
    partners = mixing.partners(rng, indices, positions, AXIS)
    weights, share = mixing.weights(rng, spec.augmentation, *x.shape[1:3])
    x = mixing.mix(x, show(*partners, rng), weights)
    mixed = labels[partners.indices], share
  available = {
    'labels': own_labels,
    'mixed': mixed,
    'indices': indices,
    'step': state.step,
    'train_labels': labels,
  }
  available |= _supplies(spec, state, teacher, rng, positions)
  again = None
  if 'second_view' in spec.objective.needs:
    again = show(indices, positions, supply.second_key(rng), second=True)
  return x, again, available


def _look(
  spec: StepSpec,
  params: tuple[Tree, ...],
  objective_state: Tree,
  teacher: Variables | None,
  available: dict[str, Any],
  x: jax.Array,
  batch_stats: tuple[Tree, ...],
) -> tuple[View, View | None, tuple[Tree, ...]]:
  """`views` in training, with the logits that the student predicts by."""
  own = Variables(params[:-1], batch_stats)
  student_view, teacher_view, batch_stats = views(
    spec, own, teacher, x, spec.trained
  )
  if spec.objective.predictor:
    logits = spec.objective.predict(
      params[-1], objective_state, student_view, available['teacher_head']
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
  images: jax.Array,
  labels: jax.Array,
  indices: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """`train_step` for each row of `indices [steps, local_batch]`.

  Metrics gain a leading axis of steps. `unroll` avoids a loop: XLA's CPU
  backend runs convolutions inside one many times slower.
  """

  def body(state, row):
    return train_step(spec, state, teacher, images, labels, row)

  steps = len(indices)
  if steps == 1:  # a scan of one step would still be a loop
    state, metrics = body(state, indices[0])
    return state, jax.tree.map(lambda x: x[None], metrics)
  return jax.lax.scan(body, state, indices, unroll=steps if unroll else 1)


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
  """`(state, teacher, images, labels, indices) -> (state, metrics)`.

  `indices` is `[devices, steps, local_batch]`; the state is donated.
  """
  unroll = replicas.devices[0].platform == 'cpu'
  fn = functools.partial(train_steps, spec, unroll)
  return spmd(fn, replicas, replicated=4, summed=True, donate=(0,))


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
