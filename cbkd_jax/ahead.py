"""The train programs of phases to come, compiled while a phase trains."""

import contextlib
import threading
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from cbkd_jax import cache, placement, step
from cbkd_jax.blocks import Tree
from cbkd_jax.command import IN_THE_BACKGROUND
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.experiment import Experiment
from cbkd_jax.spec import StepSpec
from cbkd_jax.stages import Stage


def begin(
  experiment: Experiment,
  phase: str,
  augmentation: Augmentation,
  examples: int,
  freed: int = 0,
) -> threading.Thread | None:
  """Starts compiling the programs of the phases after `phase`, in their order.

  A stage may be over before the next one's program is there, while the teacher
  trains for long. A phase itself asks for the same program later, and then
  finds it or waits for it (`replicas.Program`). Whatever is wrong with it
  shows up there.

  Args:
    experiment: the run's.
    phase: 'teacher' or a stage's name.
    augmentation: of the train split.
    examples: in the train split.
    freed: bytes of the phase's own cache, which is gone by then.

  Returns:
    The thread; None if `phase` is the last one, or an earlier phase's thread
    is still at it.
  """
  phases = ['teacher', *(stage.name for stage in experiment.stages)]
  following = experiment.stages[phases.index(phase) :]
  # Of several processes all must compile the same; each for itself guesses
  # what will fit.
  # What a probe has to say of the student is not known yet.
  unknown = phase == 'teacher' and experiment.probes
  if not following or unknown or jax.process_count() > 1:
    return None
  if any(t.name == IN_THE_BACKGROUND for t in threading.enumerate()):
    return None
  thread = threading.Thread(
    target=_compile,
    args=(experiment, following, augmentation, examples, freed),
    name=IN_THE_BACKGROUND,
    daemon=True,
  )
  thread.start()
  return thread


def _compile(
  experiment: Experiment,
  following: Sequence[Stage],
  augmentation: Augmentation,
  examples: int,
  freed: int,
) -> None:
  with contextlib.suppress(Exception):
    for i, stage in enumerate(following):
      spec = experiment.spec(stage, augmentation)
      if i and spec.fixed_views is not None:
        break  # which cache will fit depends on the phases in between
      compile_phase(spec, experiment, examples, freed)


def compile_phase(
  spec: StepSpec, experiment: Experiment, examples: int, freed: int = 0
) -> None:
  """Compiles the first call of a phase, from shapes alone; see `arguments`."""
  spec, found = arguments(spec, experiment, examples, freed)
  step.compiled_train(spec, experiment.replicas).compiled(*found)


def arguments(
  spec: StepSpec, experiment: Experiment, examples: int, freed: int = 0
) -> tuple[StepSpec, tuple[Tree, ...]]:
  """What the first call of a phase is given.

  Args:
    spec: the phase.
    experiment: holds devices, pace and the config's cache.
    examples: in the train split.
    freed: bytes of a cache that is gone by then.

  Returns:
    The spec of the phase's steps, and the shapes, types and places of state,
    teacher, data set and batches.
  """
  replicas = experiment.replicas
  pace = experiment.pace.of(spec.training.steps)
  devices = len(replicas.devices)
  _, teacher = spec.shapes()
  state = step.state_shapes(spec)
  steps = min(pace.per_call, spec.training.steps)
  shape = (devices, steps, pace.batch_size // devices)
  on_device, own = None, step.Drawn(jax.ShapeDtypeStruct(shape, np.int32))
  if spec.fixed_views is not None:
    fields = experiment.config['cache']
    plan = cache.plan(spec, fields['dtype'], examples)
    rows_per_call = steps * shape[-1]
    place, _ = placement.choose(plan, fields, replicas, rows_per_call, freed)
    if place is not None:
      spec = cache.with_layout(spec, plan)
    if place == 'device':
      on_device = cache.row_shapes(spec, spec.fixed_views * examples)
    elif place == 'host':
      rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((*shape, *x.shape[1:]), x.dtype),
        cache.row_shapes(spec, 1),
      )
      again = rows if 'second_view' in spec.objective.needs else None
      own = own._replace(cache=rows, again=again)
  images, labels = (
    lambda shape: jax.ShapeDtypeStruct((*shape, *spec.image_shape), np.uint8),
    lambda shape: jax.ShapeDtypeStruct(shape, np.int32),
  )
  if experiment.streams:
    data = step.Resident(None, None)
    own = own._replace(examples=step.Examples(images(shape), labels(shape)))
  else:
    data = step.Resident(images((examples,)), labels((examples,)), on_device)
  return spec, (
    jax.tree.map(replicas.shape, state),
    jax.tree.map(replicas.shape, spec.unshared(teacher)),
    _placed(data, replicas.everywhere),
    _placed(own, replicas.shares),
  )


def _placed(tree: Tree, sharding: NamedSharding) -> Tree:
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
  )
