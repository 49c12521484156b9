"""A replica's batch: images in a view, what is kept of them, what is needed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cbkd_jax import collectives, storage, supply
from cbkd_jax.blocks import Variables
from cbkd_jax.data import flips, mixing
from cbkd_jax.data.augment import augment
from cbkd_jax.models.layers import materialise
from cbkd_jax.objectives.method import published_epoch
from cbkd_jax.spec import StepSpec
from cbkd_jax.state import TrainState
from cbkd_jax.storage import Rows
from cbkd_jax.views import Frozen, frozen_outputs


class Resident(NamedTuple):
  """A train split, the same on every device.

  Attributes:
    images: uint8 `[examples, height, width, channels]`; None where a step's
      images are read from disk.
    labels: int32 `[examples]`, likewise.
    cache: rows of what the phase can't change, `[views * examples, ...]`;
      None where they are not kept on the devices.
  """

  images: jax.Array | None
  labels: jax.Array | None
  cache: Rows | None = None


class Examples(NamedTuple):
  """Images and labels as they are, a replica's share of a split.

  Attributes:
    images: uint8 `[local_batch, height, width, channels]`.
    labels: int32 `[local_batch]`.
  """

  images: jax.Array
  labels: jax.Array


class Drawn(NamedTuple):
  """A replica's share of a batch, or of several: then with a leading axis.

  Attributes:
    rows: int32 `[local_batch]`, the examples; with fixed views `view *
      examples + example`.
    cache: their rows of what the phase can't change, where these are kept on
      the host.
    again: likewise of their second views, if the objective needs them.
    examples: the examples themselves, where no device holds the split.
  """

  rows: jax.Array
  cache: Rows | None = None
  again: Rows | None = None
  examples: Examples | None = None


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
  """A replica's batch, from the split or from what was read of it."""
  # Randomness is keyed by the step and by the example's position in the
  # global batch: it does not depend on how many replicas share the batch.
  rng = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)
  local_batch = drawn.rows.shape[0]
  positions = jnp.arange(local_batch)
  positions += collectives.first_position(local_batch, spec.axis)
  indices, mixed, frozen = drawn.rows, None, (None, None)
  if spec.fixed_views is None:
    x, again, mixed = _new_views(spec, state, data, drawn, positions, rng)
  else:
    indices = drawn.rows % len(data.images)
    second = second_rows(drawn.rows, len(data.images), spec.fixed_views)
    x = fixed_view(spec, state.rng, data.images, drawn.rows)
    again = None
    if 'second_view' in spec.objective.needs:
      again = fixed_view(spec, state.rng, data.images, second)
    frozen = _kept(spec, state, teacher, data, drawn, second)
  available = {
    'labels': _labels(data, drawn, indices),
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
  drawn: Drawn,
  positions: jax.Array,
  rng: jax.Array,
) -> tuple[jax.Array, jax.Array | None, Any]:
  """Images augmented as never before: the first view, the second, and 'mixed'.

  The second is None where the objective doesn't need it; for 'mixed' see
  `AVAILABLE`.
  """
  train_size = spec.objective.setting.train_size
  if data.images is not None:
    train_size = len(data.images)

  def show(images, indices, positions, rng, second=False):
    mirrored = None
    if spec.augmentation.alternating_flip:
      batch_size = collectives.global_size(len(positions), spec.axis)
      mirrored = flips.alternating(
        jax.random.wrap_key_data(state.rng),
        state.step,
        indices,
        positions,
        batch_size,
        train_size,
      )
      mirrored ^= second  # two looks at an image are both ways round
    return augment(images, rng, positions, spec.augmentation, mirrored)

  indices = drawn.rows
  own = _own(data, drawn, indices)
  x, again, mixed = show(own.images, indices, positions, rng), None, None
  if spec.augmentation.mixes:
    # A partner's image is made anew, as its own slot shows it: it may be
    # another replica's.
    everyone = collectives.gather(indices, spec.axis)
    partners = mixing.partners(rng, everyone, positions)
    weights, share = mixing.weights(rng, spec.augmentation, *x.shape[1:3])
    theirs = _partners_own(spec, data, drawn, partners)
    x = mixing.mix(x, show(theirs.images, *partners, rng), weights)
    mixed = theirs.labels, share
  if 'second_view' in spec.objective.needs:
    key = supply.second_key(rng)
    again = show(own.images, indices, positions, key, second=True)
  return x, again, mixed


def _labels(data: Resident, drawn: Drawn, indices: jax.Array) -> jax.Array:
  """Without the images: materialised together, both would be looked up."""
  if drawn.examples is not None:
    return drawn.examples.labels
  return data.labels[indices]


def _own(data: Resident, drawn: Drawn, indices: jax.Array) -> Examples:
  """A replica's examples: looked up, or as they were read."""
  if drawn.examples is not None:
    return materialise(drawn.examples)
  # Not looked up within what comes next: wherever images come from, XLA then
  # rounds the rest of the step in the same way.
  return materialise(Examples(data.images[indices], data.labels[indices]))


def _partners_own(
  spec: StepSpec, data: Resident, drawn: Drawn, partners: mixing.Partners
) -> Examples:
  """The examples that a replica's are mixed with, of any replica."""
  if drawn.examples is None:
    return _own(data, drawn, partners.indices)
  everyones = collectives.gather(drawn.examples, spec.axis)
  return materialise(Examples(*(x[partners.positions] for x in everyones)))


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
