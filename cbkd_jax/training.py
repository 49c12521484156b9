"""The whole method, in the order in which it happens.

Data, teacher, stages deepest first, fold and thaw, evaluation, summary. The
same config in the same workdir resumes.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console

from cbkd_jax import (
  adoption,
  blocks,
  buckets,
  budget,
  budget_search,
  checkpoints,
  config,
  damages,
  data,
  experiment,
  initialization,
  networks,
  prediction,
  probe,
  processes,
  student,
  summary,
  wall,
  workdir,
)
from cbkd_jax.blocks import Variables
from cbkd_jax.budget_search import Found
from cbkd_jax.compression import fold
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.errors import UserError
from cbkd_jax.experiment import Experiment
from cbkd_jax.monitoring import Monitor
from cbkd_jax.phases import Run, Trained, run_phase
from cbkd_jax.stages import Stage
from cbkd_jax.step import Resident


def train_and_evaluate(
  values: Mapping[str, Any],
  directory: Path,
  *,
  console: rich.console.Console,
  interrupted: Callable[[], bool] = lambda: False,
  from_workdir: Path | None = None,
  from_stage: str | None = None,
  found: Found | None = None,
  command: str | None = None,
) -> dict[str, Any]:
  """Trains, compresses, evaluates; resumes what is there.

  Args:
    values: the resolved config, as nested plain values.
    directory: the workdir.
    console: where to show how it goes.
    interrupted: whether to save and stop.
    from_workdir: another run, whose phases before `from_stage` are taken.
    from_stage: the first stage to run: its name, or its number from 1.
    found: the student of a new run that has a target; None: is found.
    command: the command line, which the workdir keeps.

  Returns:
    What summary.json holds.

  Raises:
    UserError: wrong input; nothing was written.
    NonFiniteLossError: a loss term became NaN or infinite.
    Preempted: `interrupted`, and everything is saved.
  """
  wall.begin()
  config.check(values)
  processes.check_same(
    {
      'config': {**workdir.compared(values), 'mesh': values['mesh']},
      'workdir': str(directory),
      'from': [str(from_workdir), from_stage],
    }
  )
  found = _found(values, directory, from_workdir, found)
  prepared = processes.together(
    functools.partial(
      _prepare, values, directory, from_workdir, from_stage, found
    )
  )
  if prepared.finished:
    console.print(f'{directory}: already finished', markup=False)
    summary.show_results(prepared.finished, console)
    return prepared.finished

  with contextlib.ExitStack() as held:
    processes.together(
      functools.partial(
        _take, values, directory, from_workdir, prepared, held, command
      )
    )
    # Only now, with the first process's files in it.
    processes.together(functools.partial(_see, directory))
    monitor = Monitor(directory, console, writes=processes.is_first())
    held.enter_context(contextlib.closing(monitor))
    run = _start(prepared, directory, monitor, interrupted)
    return _run_phases(run, prepared.teacher_path)


def _found(
  values: Mapping[str, Any],
  directory: Path,
  from_workdir: Path | None,
  found: Found | None,
) -> Found | None:
  """The student that meets the target, the same in every start and process.

  What a workdir has is never looked for again: another device would measure
  something else, a later version might choose otherwise.
  """
  if not values['compression']['target']:
    return None

  def find() -> Found | None:
    if not processes.is_first():
      return None
    if workdir.check_config(directory, values, config.defaults()):
      there = budget_search.stored(directory, values)
    else:
      there = found
      if there is None and from_workdir is not None:
        there = budget_search.stored(from_workdir, values)
    return there or experiment.build(values).found

  return _told(processes.together(find))


def _told(found: Found | None) -> Found:
  """What the first process has found, in every process."""
  text = json.dumps(found and dataclasses.asdict(found))
  return budget_search.read(json.loads(processes.first_says(text)))


class _Prepared(NamedTuple):
  """What is known before anything is written."""

  experiment: Experiment
  finished: dict[str, Any] | None = None
  adopted: tuple[str, ...] = ()
  dataset: data.Dataset | None = None
  augmentation: Augmentation | None = None
  teacher_path: Path | None = None


def _prepare(
  values: Mapping[str, Any],
  directory: Path,
  from_workdir: Path | None,
  from_stage: str | None,
  found: Found | None,
) -> _Prepared:
  """Checks everything; writes nothing."""
  exp = experiment.build(values, found=found)
  resumes = workdir.check_config(directory, values, config.defaults())
  if processes.is_first():
    workdir.check_free(directory)
  if (directory / 'summary.json').exists():
    finished = workdir.read_json(directory / 'summary.json')
    return _Prepared(exp, finished)
  adopted = []
  if not resumes:
    adopted = adoption.adopted_phases(exp, from_workdir, from_stage)
    if exp.probes and len(adopted) > 1:
      raise UserError(
        f'--from_stage={from_stage}: must be stage_1 here; with '
        'compression.probe the student is not known yet, and that of '
        f'{from_workdir} had other settings of compression'
      )
  dataset = experiment.load_data(values)
  augmentation = experiment.augmentation_for(values, dataset.train)
  teacher_path = None
  if not (adopted or checkpoints.is_finished(directory / 'teacher')):
    teacher_path = adoption.check_teacher(exp)
  return _Prepared(
    exp, None, tuple(adopted), dataset, augmentation, teacher_path
  )


def _take(
  values: Mapping[str, Any],
  directory: Path,
  from_workdir: Path | None,
  prepared: _Prepared,
  held: contextlib.ExitStack,
  command: str | None,
) -> None:
  """Makes the workdir this run's; the first process does it for all."""
  if not processes.is_first():
    return
  held.enter_context(workdir.locked(directory))
  # Once more: another process may have begun here meanwhile.
  if not workdir.check_config(directory, values, config.defaults()):
    found = prepared.experiment.found
    workdir.begin(
      directory,
      values,
      from_workdir,
      prepared.adopted,
      budget=found and dataclasses.asdict(found),
    )
  if command:
    with buckets.told(directory, 'workdir'):
      workdir.add_command(directory, command)


def _see(directory: Path) -> None:
  """Refuses a workdir that is another one in each process."""
  if not (directory / 'config.json').exists():
    raise UserError(
      f'workdir = {directory}: what process 0 has written there is not seen '
      'by all; must be on a disk that all processes share, or in a bucket'
    )


def _start(
  prepared: _Prepared,
  directory: Path,
  monitor: Monitor,
  interrupted: Callable[[], bool],
) -> Run:
  """Puts the data on the devices."""
  exp, dataset = prepared.experiment, prepared.dataset
  splits = {'test': dataset.test}
  if dataset.validation is not None:
    splits['validation'] = dataset.validation
  devices = exp.replicas.devices
  among = f' in {jax.process_count()} processes' * (jax.process_count() > 1)
  monitor.console.print(
    f'{dataset.name}: {len(dataset.train):,} train, '
    + ', '.join(f'{len(s):,} {name}' for name, s in splits.items())
    + f' examples; {len(devices)} x {devices[0].device_kind}{among}',
    highlight=False,
    markup=False,
  )
  train = Resident(None, None)
  if not exp.streams:
    train = Resident(dataset.train.images, dataset.train.labels)
  return Run(
    experiment=exp,
    directory=directory,
    monitor=monitor,
    interrupted=interrupted,
    augmentation=prepared.augmentation,
    dataset=dataset,
    train=exp.replicas.put(train),
    splits=splits,
  )


def _run_phases(run: Run, teacher_path: Path | None) -> dict[str, Any]:
  exp = run.experiment
  run.teacher, teacher_results = _teacher(run, teacher_path)
  if exp.probes:
    exp = run.experiment = _probe(run)

  trained, results = None, []
  for stage in exp.stages:
    trained, stage_results = _stage(run, stage, trained)
    results.append(stage_results)

  objective = exp.objective(exp.stages[-1])
  variables = prediction.variables(objective, *trained, run.teacher)
  student.save(
    run.directory / 'student',
    exp,
    variables,
    run.augmentation,
    run.dataset.class_names,
  )
  found = summary.summarize(exp, run.dataset, teacher_results, results)
  if processes.is_first():
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

  trained, results = run_phase(run, 'teacher', spec, start, None)
  return trained.variables, results


def _probe(run: Run) -> Experiment:
  """The run with the student that a probe of the teacher's blocks leads to.

  What budget.json then says is final; probe.json is not measured again.
  """
  exp, path = run.experiment, run.directory / workdir.PROBE
  fields = exp.config['compression']
  if path.exists():
    losses = damages.read(path)
  else:
    losses = probe.measure(
      exp,
      run.teacher,
      run.dataset.train,
      run.augmentation,
      keep=fields['probe_keep'],
      steps=fields['probe_steps'],
      interrupted=run.interrupted,
    )
    if processes.is_first():
      workdir.write_json(path, losses._asdict())
  damages.show(losses, run.monitor.console)

  def find() -> Found | None:
    if not processes.is_first():
      return None
    found = budget_search.find(
      networks.choice(
        exp.config,
        exp.local,
        exp.local_student.other,
        exp.stages[-1].objective,
      ),
      budget.parse(fields['target']),
      jax.local_devices()[0],
      functools.partial(damages.damages, losses),
    )
    found = dataclasses.replace(found, probed=True)
    workdir.write_json(
      run.directory / workdir.BUDGET, dataclasses.asdict(found)
    )
    return found

  found = _told(processes.together(find))
  run.monitor.console.print(
    f'keep {_ratios(found.keep)}: {budget_search.says(found.report())}; '
    f'without the probe it would be {_ratios(exp.found.keep)}',
    highlight=False,
    soft_wrap=True,
  )
  return experiment.build(exp.config, found=found)


def _ratios(keep: Sequence[float]) -> str:
  return ' / '.join(f'{ratio:.3g}' for ratio in keep)


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
  if stage.prepared:
    return previous
  shapes = blocks.shapes(exp.network(stage), exp.image_shape)
  if stage.folded and restored and all(stage.trained):
    return shapes
  if stage.folded and previous is not None:
    return fold(previous, stage.inherited)
  last = len(stage.student) - 1
  if stage.folded:
    own = [i >= stage.inherited for i in range(last + 2)]
  else:
    own = list((stage.prepares or stage).trained)
  new = shapes
  if not restored or stage.prepares:
    new = blocks.init(
      exp.network(stage),
      exp.rng((stage.prepares or stage).name),
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
  (index,) = (stage.prepares or stage).trained_blocks
  count = initialization.CALIBRATION_EXAMPLES
  first = np.arange(min(count, len(run.dataset.train)))
  ((images, _),) = run.dataset.train.batches([first])
  return initialization.initialize_block(
    exp.config['compression']['init'],
    index,
    teacher=exp.local,
    units=exp.student.units[index],
    network=exp.network(stage, local=True),
    random=new,
    teacher_network=exp.local.network(),
    teacher_variables=run.teacher,
    images=normalise(jnp.asarray(images), run.augmentation),
  )


def _stage(
  run: Run, stage: Stage, previous: Trained | None
) -> tuple[Trained, dict[str, Any]]:
  """Trains one stage; returns what it leaves and its figures."""
  exp = run.experiment
  spec = exp.spec(stage, run.augmentation)
  before, learned = previous or (None, None)
  start = functools.partial(_assemble, run, stage, before)
  trained, results = run_phase(
    run, stage.name, spec, start, spec.unshared(run.teacher), learned
  )
  if stage.prepares and learned:
    # What the pre-stage has no part in goes on past it.
    own = trained.objective or ({}, {})
    both = tuple({**old, **new} for old, new in zip(learned, own))
    trained = trained._replace(objective=both)
  results = {
    'name': stage.name,
    'trained_blocks': list(stage.trained_blocks),
    **results,
  }
  if results['warning']:
    run.monitor.console.print(f'[yellow]warning: {results["warning"]}')
  return trained, results
