"""The whole method: `python -m cbkd_jax.train --config=FILE --workdir=DIR`.

In the order in which it happens: data, teacher, stages deepest first, fold
and thaw, evaluation, summary. The same command in the same workdir resumes.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
from absl import flags

from cbkd_jax import (
  blocks,
  checkpoints,
  command,
  config,
  data,
  evaluation,
  experiment,
  initialization,
  preemption,
  step,
  student,
  summary,
  workdir,
)
from cbkd_jax.blocks import Variables
from cbkd_jax.compression import fold
from cbkd_jax.data.augment import Augmentation, channel_stats, normalise
from cbkd_jax.errors import NonFiniteLossError, Preempted, UserError
from cbkd_jax.experiment import Experiment
from cbkd_jax.fit import Clock, Resident, finish, fit
from cbkd_jax.monitoring import Monitor
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
    train: the train split, on the devices.
    splits: the splits to report on, 'test' first, on the devices.
    labels: their labels.
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
  train: Resident
  splits: dict[str, jax.Array]
  labels: dict[str, np.ndarray]
  teacher: Variables | None = None
  teacher_logits: dict[str, np.ndarray] = dataclasses.field(
    default_factory=dict
  )
  steps_before: int = 0
  position: int = 0


def train_and_evaluate(
  values: Mapping[str, Any],
  directory: Path,
  *,
  console: rich.console.Console,
  interrupted: Callable[[], bool] = lambda: False,
  from_workdir: Path | None = None,
  from_stage: str | None = None,
) -> dict[str, Any]:
  """Trains, compresses, evaluates; resumes what is there.

  Args:
    values: the resolved config, as nested plain values.
    directory: the workdir.
    console: where to show how it goes.
    interrupted: whether to save and stop.
    from_workdir: another run, whose phases before `from_stage` are taken.
    from_stage: the first stage to run: its name, or its number from 1.

  Returns:
    What summary.json holds.

  Raises:
    UserError: wrong input; nothing was written.
    NonFiniteLossError: a loss term became NaN or infinite.
    Preempted: `interrupted`, and everything is saved.
  """
  config.check(values)
  exp = experiment.build(values)
  resumes = workdir.check_config(directory, values, config.defaults())
  workdir.check_free(directory)
  if (directory / 'summary.json').exists():
    found = workdir.read_json(directory / 'summary.json')
    console.print(f'{directory}: already finished')
    summary.show_results(found, console)
    return found
  adopted = []
  if not resumes:
    adopted = _adopted_phases(exp, from_workdir, from_stage)
  dataset = load_data(values)
  teacher_path = None
  if not (adopted or _is_finished(directory / 'teacher')):
    teacher_path = _check_teacher(exp)

  with workdir.locked(directory):
    if not resumes:
      workdir.begin(directory, values, from_workdir, adopted)
    with contextlib.closing(Monitor(directory, console)) as monitor:
      run = _start(exp, directory, monitor, interrupted, dataset)
      return _run_phases(run, dataset, teacher_path)


def load_data(values: Mapping[str, Any]) -> data.Dataset:
  """Reads the data set and checks it against the config."""
  fields = values['data']
  return data.load(
    fields['name'],
    data_dir=fields['dir'],
    train_split=fields['train_split'],
    test_split=fields['test_split'],
    validation_size=fields['validation_size'],
    resize=fields['resize'],
    expected_classes=fields['classes'],
    expected_shape=tuple(fields['image_shape']),
    expected_train_size=fields['train_size'],
  )


def augmentation_for(
  values: Mapping[str, Any], train: data.Split
) -> Augmentation:
  """The config's augmentation, mean and std measured where it has none."""
  fields = values['data']
  mean, std = fields['mean'], fields['std']
  if not (mean and std):
    measured = channel_stats(train.images)
    mean, std = mean or measured[0], std or measured[1]
  return Augmentation(fields['pad'], fields['flip'], tuple(mean), tuple(std))


def _adopted_phases(
  exp: Experiment, source: Path | None, from_stage: str | None
) -> list[str]:
  """The phases to take from another run, checked to be there and finished."""
  if (source is None) != (from_stage is None):
    raise UserError('--from_workdir and --from_stage go together')
  if source is None:
    return []
  names = [stage.name for stage in exp.stages]
  if from_stage.isdigit() and 1 <= int(from_stage) <= len(names):
    from_stage = names[int(from_stage) - 1]
  if from_stage not in names:
    raise UserError(
      f'--from_stage={from_stage}: must be one of {", ".join(names)} or '
      f'a number from 1 to {len(names)}'
    )
  phases = ['teacher', *names[: names.index(from_stage)]]
  for phase in phases:
    if not _is_finished(source / phase):
      raise UserError(
        f'--from_workdir={source}: its phase {phase} is not finished'
      )
  _check_adopted(exp, source, phases[1:])
  return phases


def _is_finished(directory: Path) -> bool:
  if not directory.is_dir():
    return False
  with contextlib.closing(
    checkpoints.PhaseCheckpoints(directory, read_only=True)
  ) as saved:
    return saved.latest() is not None and bool(saved.progress()['results'])


def _check_adopted(exp: Experiment, source: Path, phases: list[str]) -> None:
  """Adopted blocks must fit this config's networks."""
  teacher = checkpoints.teacher_checkpoint(str(source))
  checkpoints.read_variables(
    teacher, blocks.shapes(exp.teacher_network, exp.image_shape)
  )
  for stage in exp.stages[: len(phases)]:
    _read_trained(
      source / stage.name,
      blocks.shapes(exp.network(stage), exp.image_shape),
      stage.trained,
    )


def _read_trained(
  directory: Path, template: Variables, trained: Sequence[bool]
) -> Variables:
  """`template` with the parts that a phase has trained."""
  with contextlib.closing(
    checkpoints.PhaseCheckpoints(directory, read_only=True)
  ) as saved:
    return checkpoints.read_variables(
      saved.state_directory(),
      template,
      [i for i, is_trained in enumerate(trained) if is_trained],
    )


def _check_teacher(exp: Experiment) -> Path | None:
  """Where an existing teacher is to be read, checked to fit."""
  path = exp.config['teacher']['checkpoint']
  if not path:
    return None
  directory = checkpoints.teacher_checkpoint(path)
  checkpoints.read_variables(
    directory, blocks.shapes(exp.teacher_network, exp.image_shape)
  )
  return directory


def _start(
  exp: Experiment,
  directory: Path,
  monitor: Monitor,
  interrupted: Callable[[], bool],
  dataset: data.Dataset,
) -> Run:
  """Puts the data on the devices."""
  put = exp.replicas.put
  splits = {'test': dataset.test}
  if dataset.validation is not None:
    splits['validation'] = dataset.validation
  monitor.console.print(
    f'{dataset.name}: {len(dataset.train.labels):,} train, '
    + ', '.join(f'{len(s.labels):,} {name}' for name, s in splits.items())
    + f' examples; {len(exp.replicas.devices)} x '
    f'{exp.replicas.devices[0].device_kind}',
    highlight=False,
  )
  return Run(
    experiment=exp,
    directory=directory,
    monitor=monitor,
    interrupted=interrupted,
    augmentation=augmentation_for(exp.config, dataset.train),
    train=Resident(put(dataset.train.images), put(dataset.train.labels)),
    splits={name: put(split.images) for name, split in splits.items()},
    labels={name: split.labels for name, split in splits.items()},
  )


def _run_phases(
  run: Run, dataset: data.Dataset, teacher_path: Path | None
) -> dict[str, Any]:
  exp = run.experiment
  run.teacher, teacher_results = _teacher(run, teacher_path)

  variables, results = None, []
  for stage in exp.stages:
    variables, stage_results = _stage(run, stage, variables)
    results.append(stage_results)

  student.save(run.directory / 'student', exp, variables, run.augmentation)
  found = summary.summarize(exp, dataset, teacher_results, results)
  workdir.write_json(run.directory / 'summary.json', found)
  summary.show_results(found, run.monitor.console)
  return found


def _teacher(run: Run, path: Path | None) -> tuple[Variables, dict[str, float]]:
  """The teacher, trained or taken over, and its figures."""
  exp = run.experiment
  spec = exp.teacher_spec(run.augmentation)
  if exp.config['teacher']['checkpoint']:
    # Copied into this workdir: the run then stands on its own.
    training = dataclasses.replace(spec.training, steps=0)
    spec = dataclasses.replace(spec, training=training)

  def start(restored: bool) -> Variables:
    shapes = blocks.shapes(exp.teacher_network, exp.image_shape)
    if restored:
      return shapes
    if path is not None:
      return checkpoints.read_variables(path, shapes)
    return blocks.init(exp.teacher_network, exp.rng('teacher'), exp.image_shape)

  return _phase(run, 'teacher', spec, start, None)


def _assemble(
  run: Run, stage: Stage, previous: Variables | None, restored: bool
) -> Variables:
  """A stage's network before its first step.

  Args:
    run: the run.
    stage: the stage.
    previous: the network's variables after the stage before, if any.
    restored: whether what the stage trains comes from a checkpoint; here it
      is shapes, then.

  Returns:
    The teacher's variables in the teacher's parts, trained ones in the
    student's, and new ones in the block that this stage is about.
  """
  exp = run.experiment
  shapes = blocks.shapes(exp.network(stage), exp.image_shape)
  if stage.folded and restored:
    return shapes
  if stage.folded and previous is not None:
    return fold(previous, stage.inherited)
  last = len(stage.student) - 1
  if stage.folded:
    own = [i >= stage.inherited for i in range(last + 2)]
  else:
    own = [trained for trained in stage.trained]
  new = shapes
  if not restored:
    new = blocks.init(
      exp.network(stage),
      exp.rng(stage.name),
      exp.image_shape,
      tuple(i for i, is_new in enumerate(own) if is_new),
    )
    if not stage.folded:
      new = _initialize(run, stage, new)
  students = (*stage.student, stage.student[last])
  sources = [
    new if is_new else previous if is_student and previous else run.teacher
    for is_new, is_student in zip(own, students)
  ]
  return Variables(
    tuple(source.params[i] for i, source in enumerate(sources)),
    tuple(source.batch_stats[i] for i, source in enumerate(sources)),
  )


def _initialize(run: Run, stage: Stage, new: Variables) -> Variables:
  """The stage's new block as `compression.init` wants it."""
  exp = run.experiment
  (index,) = stage.trained_blocks
  count = initialization.CALIBRATION_EXAMPLES
  images = jnp.asarray(jax.device_get(run.train.images[:count]))
  return initialization.initialize_block(
    exp.config['compression']['init'],
    index,
    teacher=exp.local,
    units=exp.student.units[index],
    network=exp.network(stage, local=True),
    random=new,
    teacher_network=exp.local.network(),
    teacher_variables=run.teacher,
    images=normalise(images, run.augmentation),
  )


def _stage(
  run: Run, stage: Stage, previous: Variables | None
) -> tuple[Variables, dict[str, Any]]:
  """Trains one stage; returns its network's variables and its figures."""
  exp = run.experiment
  spec = exp.spec(stage, run.augmentation)
  # The shared parts are in the state; the step needs the teacher's others.
  rest = None
  if spec.teacher is not None:
    rest = Variables(
      *(
        tuple(None if i < stage.shared else t for i, t in enumerate(trees))
        for trees in run.teacher
      )
    )
  start = functools.partial(_assemble, run, stage, previous)
  variables, results = _phase(run, stage.name, spec, start, rest)
  results = {
    'name': stage.name,
    'trained_blocks': list(stage.trained_blocks),
    **results,
  }
  if results['warning']:
    run.monitor.console.print(f'[yellow]warning: {results["warning"]}')
  return variables, results


def _phase(
  run: Run,
  name: str,
  spec: step.StepSpec,
  start: Callable[[bool], Variables],
  teacher: Variables | None,
) -> tuple[Variables, dict[str, Any]]:
  """Trains a phase to its end, or reads its end, and evaluates it.

  Args:
    run: the run.
    name: the phase's.
    spec: what is static in its step.
    start: gives the network's variables before the first step; `start(True)`
      gives mere shapes for what the phase trains.
    teacher: the teacher's variables, as the step wants them.

  Returns:
    The network's variables at the end, on the host, and its figures.
  """
  if run.interrupted():
    raise Preempted(f'{name}: not begun; what was done before is saved')
  directory = run.directory / name
  with contextlib.closing(checkpoints.PhaseCheckpoints(directory)) as saved:
    progress = {'clock': {}, 'metrics_position': run.position, 'results': None}
    if saved.latest() is not None:
      progress = saved.progress()
    if progress['results']:
      variables = _read_trained(directory, start(True), spec.trained)
    else:
      variables = _train(run, name, spec, start, teacher, saved, progress)
  run.position = progress['metrics_position']
  run.steps_before += progress['results']['steps']
  return jax.device_get(variables), progress['results']


def _train(
  run: Run,
  name: str,
  spec: step.StepSpec,
  start: Callable[[bool], Variables],
  teacher: Variables | None,
  saved: checkpoints.PhaseCheckpoints,
  progress: dict[str, Any],
) -> Variables:
  """Trains and evaluates a phase from where it stands; updates `progress`."""
  exp = run.experiment
  rng = exp.rng(name)
  if saved.latest() is None:
    state = step.create_train_state(spec, start(False), teacher, rng)
  else:
    state = _restore(spec, start(True), teacher, rng, saved)
  clock = Clock(**progress['clock'])
  total = spec.training.steps
  run.monitor.open(
    progress['metrics_position'], run.steps_before + int(state.step)
  )
  last = {'loss': None}
  if total:
    state, last = fit(
      name,
      spec,
      exp.replicas.put(state),
      exp.replicas.put(teacher),
      run.train,
      replicas=exp.replicas,
      pace=exp.pace,
      sample_seed=exp.sample_seed(name),
      saved=saved,
      monitor=run.monitor,
      steps_before=run.steps_before,
      interrupted=run.interrupted,
      clock=clock,
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
  finish(saved, state, spec, run.monitor, clock, progress['results'])
  progress['metrics_position'] = run.monitor.position()
  return state.variables


def _restore(
  spec: step.StepSpec,
  known: Variables,
  teacher: Variables | None,
  rng: jax.Array,
  saved: checkpoints.PhaseCheckpoints,
) -> step.TrainState:
  """A phase's state in the middle; `known` holds what it doesn't train."""
  state = jax.eval_shape(
    functools.partial(step.create_train_state, spec),
    known,
    teacher,
    rng,
  )
  state = state._replace(
    params=(*known.params, state.params[-1]), batch_stats=known.batch_stats
  )
  return checkpoints.tree_to_state(saved, state, spec.trained)


def _predict(
  run: Run, network: blocks.Network, variables: Variables
) -> dict[str, np.ndarray]:
  exp = run.experiment
  variables = exp.replicas.put(variables)
  return {
    name: evaluation.predict(
      network,
      variables,
      images,
      run.augmentation,
      exp.replicas,
      exp.config['eval_batch_size'],
    )
    for name, images in run.splits.items()
  }


def _evaluate(
  run: Run, name: str, spec: step.StepSpec, state: step.TrainState
) -> dict[str, Any]:
  """A phase's figures on the test split, and on the validation split."""
  exp = run.experiment
  logits = _predict(run, spec.student, state.variables)
  if run.teacher is not None and not run.teacher_logits:
    run.teacher_logits = _predict(run, exp.teacher_network, run.teacher)
  found = {}
  for split, values in logits.items():
    if not np.isfinite(values).all():
      raise NonFiniteLossError(
        f'{name}, step {spec.training.steps}: logits of the {split} split are '
        'not finite; the last checkpoint is kept'
      )
    found[split] = evaluation.scores(values, run.labels[split])
    if run.teacher_logits:
      teacher = run.teacher_logits[split]
      found[split] |= evaluation.comparison(values, teacher)
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
  warning = None
  if figures['accuracy'] < 2 * chance:
    warning = (
      f'{name}: accuracy {figures["accuracy"]:.4f} is below twice chance, '
      f'{2 * chance:.4f}'
    )
  return {**figures, 'warning': warning}


def main() -> None:
  """Reads the flags and does what they say."""
  flags_ = flags.FLAGS
  command.require(config=flags_.config)
  values = config.plain(flags_.config)
  console = rich.console.Console()
  if flags_.dry_run:
    config.check(values)
    data.check_name(values['data']['name'], values['data']['dir'])
    summary.show_plan(experiment.build(values), console)
    return
  command.require(workdir=flags_.workdir)
  interrupted = preemption.listen()
  train_and_evaluate(
    values,
    Path(flags_.workdir),
    console=console,
    interrupted=interrupted,
    from_workdir=Path(flags_.from_workdir) if flags_.from_workdir else None,
    from_stage=flags_.from_stage,
  )


if __name__ == '__main__':
  command.define_config()
  flags.DEFINE_string('workdir', None, 'Where the run is kept.')
  flags.DEFINE_bool('dry_run', False, 'Print the plan; needs no data.')
  flags.DEFINE_string(
    'from_workdir', None, 'Take finished stages from this run.'
  )
  flags.DEFINE_string(
    'from_stage', None, 'The first stage to run anew: its name or number.'
  )
  command.run(main)
