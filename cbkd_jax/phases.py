"""One phase of a run: trained from where it stands, evaluated, saved."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cbkd_jax import (
  ahead,
  blocks,
  cache,
  checkpoints,
  evaluation,
  feed,
  placement,
  prediction,
  processes,
  quantization,
  sharding,
  step,
)
from cbkd_jax.blocks import Variables
from cbkd_jax.data import Dataset, Split, Streamed
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.errors import NonFiniteLossError, Preempted, UserError
from cbkd_jax.experiment import Experiment
from cbkd_jax.fit import Clock, finish, fit
from cbkd_jax.monitoring import Monitor
from cbkd_jax.replicas import Replicas
from cbkd_jax.stages import Stage


@dataclasses.dataclass
class Run:
  """What the phases of a run share.

  Attributes:
    experiment: the plan and its objects.
    directory: the workdir.
    monitor: where metrics go.
    interrupted: whether a signal has arrived.
    augmentation: of the train split.
    train: the train split, on the devices; without images where they are read
      from disk.
    dataset: the data.
    splits: the splits to report on, 'test' first.
    teacher: its variables, once they are there.
    teacher_logits: of each split, once they were needed.
    steps_before: steps of the phases that are done.
    position: of metrics.jsonl at the end of the phases that are done.
  """

  experiment: Experiment
  directory: Path
  monitor: Monitor
  interrupted: Callable[[], bool]
  augmentation: Augmentation
  dataset: Dataset
  train: step.Resident
  splits: dict[str, Split | Streamed]
  teacher: Variables | None = None
  teacher_logits: dict[str, np.ndarray] = dataclasses.field(
    default_factory=dict
  )
  steps_before: int = 0
  position: int = 0


class Trained(NamedTuple):
  """What a phase leaves, on the host.

  Attributes:
    variables: of its network.
    objective: the objective's (params, state) by term, where the next phase
      or the student may want them, else None.
  """

  variables: Variables
  objective: tuple[Any, Any] | None = None


def run_phase(
  run: Run,
  name: str,
  spec: step.StepSpec,
  start: Callable[[bool], Variables],
  teacher: Variables | None,
  previous: tuple[Any, Any] | None = None,
) -> tuple[Trained, dict[str, Any]]:
  """Trains a phase to its end, or reads its end, and evaluates it.

  Args:
    run: the run.
    name: the phase's.
    spec: what is static in its step.
    start: gives the network's variables before the first step; `start(True)`
      gives mere shapes for what the phase trains.
    teacher: the teacher's variables, as the step wants them.
    previous: the objective's variables of the phase before, if wanted.

  Returns:
    What it leaves, and its figures.
  """
  if run.interrupted():
    raise Preempted(f'{name}: not begun; what was done before is saved')
  directory = run.directory / name
  with contextlib.closing(checkpoints.PhaseCheckpoints(directory)) as saved:
    for at, path in saved.half_written:
      run.monitor.console.print(
        f'{name}: ignored a half-written checkpoint (step {at}): {path}',
        style='yellow',
        markup=False,
        highlight=False,
        soft_wrap=True,
      )
    progress = {'clock': {}, 'metrics_position': run.position, 'results': None}
    if saved.latest() is not None:
      progress = saved.progress()
    if progress['results']:
      found = _read(spec, start(True), saved)
    else:
      found = _train(run, name, spec, start, teacher, previous, saved, progress)
  run.position = progress['metrics_position']
  run.steps_before += progress['results']['steps']
  return run.experiment.replicas.fetch(found), progress['results']


def _read(
  spec: step.StepSpec,
  known: Variables,
  saved: checkpoints.PhaseCheckpoints,
) -> Trained:
  """What a finished phase has left; `known` holds what it did not train."""
  variables = checkpoints.read_variables(
    saved.state_directory(),
    known,
    [i for i, is_trained in enumerate(spec.trained) if is_trained],
  )
  if not spec.objective.goes_on:
    return Trained(variables)
  state = step.state_shapes(spec)
  own = checkpoints.read_objective(
    saved.state_directory(), state.params[-1], state.objective_state
  )
  return Trained(variables, own)


def _train(
  run: Run,
  name: str,
  spec: step.StepSpec,
  start: Callable[[bool], Variables],
  teacher: Variables | None,
  previous: tuple[Any, Any] | None,
  saved: checkpoints.PhaseCheckpoints,
  progress: dict[str, Any],
) -> Trained:
  """Trains and evaluates a phase from where it stands; updates `progress`."""
  exp = run.experiment
  rng = exp.rng(name)
  if saved.latest() is None:
    with exp.replicas.beginning():
      state = step.create_train_state(
        spec, start(False), teacher, rng, previous
      )
  else:
    state = _restore(spec, start(True), saved, exp.replicas)
  clock = Clock(**progress['clock'])
  total = spec.training.steps
  pace = exp.pace.of(total)
  run.monitor.open(
    progress['metrics_position'], run.steps_before + int(state.step)
  )
  last = {'loss': None}
  kept = None
  if total:
    state, teacher = exp.replicas.divide((state, teacher))
    # A resumed phase goes on as it was begun: elsewhere a cache rounds
    # otherwise.
    fields = exp.config['cache']
    begun = 'cache_place' in progress
    if begun and progress['cache_place'] is not None:
      fields = {**fields, 'place': progress['cache_place']}
    train = run.train
    if spec.fixed_views and not (begun and progress['cache_place'] is None):
      spec, train, kept = _keep(run, name, spec, state, teacher, fields, begun)
    if kept:
      clock.seconds += kept.seconds
      clock.cache_seconds += kept.seconds
    given = feed.begin(
      run.dataset.train,
      spec,
      seed=exp.sample_seed(name),
      first_step=int(state.step),
      kept=kept,
      batch_size=pace.batch_size,
      per_call=pace.per_call,
      replicas=exp.replicas,
    )
    with contextlib.closing(given):
      state, last = fit(
        name,
        spec,
        state,
        teacher,
        train,
        kept=kept,
        replicas=exp.replicas,
        pace=pace,
        feed=given,
        saved=saved,
        monitor=run.monitor,
        steps_before=run.steps_before,
        interrupted=run.interrupted,
        clock=clock,
        meanwhile=functools.partial(
          ahead.begin,
          exp,
          name,
          run.augmentation,
          len(run.dataset.train),
          kept.plan.bytes if kept else 0,
        ),
      )
      if said := feed.waiting(given.waited()):
        run.monitor.console.print(
          f'[yellow]{name}: {said}', highlight=False, soft_wrap=True
        )
  figures = _evaluate(run, name, spec, state)
  progress['results'] = {
    'steps': total,
    **figures,
    'loss': last['loss'],
    'seconds': clock.seconds,
    'compile_seconds': clock.compile_seconds,
    'examples_per_second': clock.examples_per_second(
      total * exp.pace.batch_size
    ),
  }
  if kept:
    progress['results']['cache'] = {
      'views': spec.fixed_views,
      'dtype': spec.cache.dtype,
      'place': kept.place,
      'bytes': kept.plan.bytes,
      'error': kept.error,
      'seconds': clock.cache_seconds,
    }
  finish(saved, state, spec, run.monitor, clock, kept, progress['results'])
  progress['metrics_position'] = run.monitor.position()
  own = state.params[-1], state.objective_state
  return Trained(state.variables, own if spec.objective.goes_on else None)


def _keep(
  run: Run,
  name: str,
  spec: step.StepSpec,
  state: step.TrainState,
  teacher: Variables | None,
  fields: Mapping[str, Any],
  begun: bool,
) -> tuple[step.StepSpec, step.Resident, cache.Kept | None]:
  """Computes what the phase can't change, if it fits.

  Returns:
    The spec and the train split for the phase's steps, and the cache.

  Raises:
    UserError: the phase was begun with a cache that no longer fits.
    Preempted: a signal has arrived.
  """
  exp, console = run.experiment, run.monitor.console
  plan = cache.plan(spec, fields['dtype'], len(run.dataset.train))
  pace = exp.pace.of(spec.training.steps)
  rows = pace.per_call * pace.batch_size // len(exp.replicas.devices)
  place, why = placement.choose(plan, fields, exp.replicas, rows)
  # Of several processes the one with the least memory decides for all.
  worst = processes.most(placement.PLACES.index(place))
  if placement.PLACES[worst] != place:
    place, why = placement.PLACES[worst], f'{why}, but not in every process'
  if place is None and begun:
    raise UserError(
      f'{name} was begun with a cache on the {fields["place"]}, which no '
      f'longer fits: it takes {why}; delete {run.directory / name} to begin '
      'it anew'
    )
  if place is None:
    console.print(
      f'[yellow]{name}: no cache, it takes {why}: computed in every step',
      highlight=False,
      soft_wrap=True,
    )
    return spec, run.train, None
  try:
    kept = cache.fill(
      plan,
      place,
      spec,
      state,
      teacher,
      run.train,
      replicas=exp.replicas,
      batch_size=exp.config['eval_batch_size'],
      interrupted=run.interrupted,
    )
  except Preempted as error:
    raise Preempted(f'{name}: {error}; nothing is lost') from None
  console.print(
    f'{name}: cache of {spec.fixed_views} view'
    f'{"s" * (spec.fixed_views > 1)} per image, {why}, '
    f'{fields["dtype"]} (relative error {kept.error:.1e}), filled in '
    f'{kept.seconds:.1f} s',
    highlight=False,
    soft_wrap=True,
  )
  spec = cache.with_layout(spec, plan)
  rows = kept.rows if place == 'device' else None
  return spec, run.train._replace(cache=rows), kept


def _restore(
  spec: step.StepSpec,
  known: Variables,
  saved: checkpoints.PhaseCheckpoints,
  replicas: Replicas,
) -> step.TrainState:
  """A phase's state in the middle; `known` holds what it doesn't train.

  What is read goes to the devices at once, to each what it is to hold.
  """
  state = step.state_shapes(spec)
  state = state._replace(
    params=(*known.params, state.params[-1]), batch_stats=known.batch_stats
  )
  state = jax.tree.map(
    lambda x: replicas.shape(x) if isinstance(x, jax.ShapeDtypeStruct) else x,
    state,
  )
  return checkpoints.tree_to_state(saved, state, spec.trained)


def _predict(
  run: Run, network: blocks.Network, variables: Variables
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Each split's logits and labels."""
  exp = run.experiment
  network = sharding.gathered(network, exp.replicas)
  variables = exp.replicas.divide(variables)
  return {
    name: evaluation.predict(
      network,
      variables,
      split,
      run.augmentation,
      exp.replicas,
      exp.config['eval_batch_size'],
    )
    for name, split in run.splits.items()
  }


def _predict_quantized(
  run: Run, stage: Stage, variables: Variables
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Likewise, of the network as an int8 export has it."""
  exp = run.experiment
  network = exp.network(stage, local=True)
  ranges = quantization.calibrate(
    network,
    exp.replicas.divide(variables),
    quantization.calibration_images(run.dataset.train),
    run.augmentation,
    exp.replicas,
    exp.config['eval_batch_size'],
  )
  return _predict(run, quantization.calibrated(network, ranges), variables)


def _evaluate(
  run: Run, name: str, spec: step.StepSpec, state: step.TrainState
) -> dict[str, Any]:
  """A phase's figures on the test split, and on the validation split."""
  exp = run.experiment
  head, width = exp.teacher_network.head, exp.architecture.widths[-1]
  own = state.params[-1], state.objective_state
  predicted = _predict(
    run,
    prediction.network(spec.objective, spec.student, head, width),
    prediction.variables(spec.objective, state.variables, own, run.teacher),
  )
  if run.teacher is not None and not run.teacher_logits:
    theirs = _predict(run, exp.teacher_network, run.teacher)
    run.teacher_logits = {name: logits for name, (logits, _) in theirs.items()}
  stage = next((s for s in exp.stages if s.name == name), None)
  quantized = {}
  if stage and stage.quantize and not stage.prepares:
    quantized = _predict_quantized(run, stage, state.variables)
  found = {}
  for split, (values, labels) in predicted.items():
    if not np.isfinite(values).all():
      raise NonFiniteLossError(
        f'{name}, step {spec.training.steps}: logits of the {split} split are '
        'not finite; the last checkpoint is kept'
      )
    found[split] = evaluation.scores(values, labels)
    if run.teacher_logits:
      teacher = run.teacher_logits[split]
      found[split] |= evaluation.comparison(values, teacher)
    if quantized:
      own = evaluation.scores(*quantized[split])
      found[split]['quantized_accuracy'] = own['accuracy']
  run.monitor.write(
    name,
    spec.training.steps,
    run.steps_before + spec.training.steps,
    {f'{s}_{k}': v for s, values in found.items() for k, v in values.items()},
  )
  figures = found.pop('test')
  for split, values in found.items():
    figures |= {f'{split}_{key}': value for key, value in values.items()}
  chance = 1 / exp.config['data']['classes']
  # With two or three classes twice chance asks too much: half way, then.
  limit, said = min(
    (2 * chance, 'twice chance'),
    ((1 + chance) / 2, 'half way from chance to 1'),
  )
  warning = None
  # A pre-stage is not meant to classify.
  if figures['accuracy'] < limit and not spec.objective.setting.preparing:
    warning = (
      f'{name}: accuracy {figures["accuracy"]:.4f} is below {said}, {limit:.4f}'
    )
  return {**figures, 'warning': warning}
