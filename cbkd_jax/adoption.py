"""What a run takes over from others: finished phases, a teacher."""

from pathlib import Path

from cbkd_jax import blocks, buckets, checkpoints, config, step, workdir
from cbkd_jax.errors import UserError
from cbkd_jax.experiment import Experiment, plan_augmentation
from cbkd_jax.weights import imported


def adopted_phases(
  exp: Experiment, source: Path | None, from_stage: str | None
) -> list[str]:
  """The phases to take from another run, checked to be there and finished."""
  if (source is None) != (from_stage is None):
    raise UserError('--from_workdir and --from_stage go together')
  if source is None:
    return []
  plan = [stage.name for stage in exp.stages]
  names = [stage.name for stage in exp.stages if not stage.prepares]
  if from_stage.isdigit() and 1 <= int(from_stage) <= len(names):
    from_stage = names[int(from_stage) - 1]
  if from_stage not in names:
    raise UserError(
      f'--from_stage={from_stage}: must be one of {", ".join(names)} or '
      f'a number from 1 to {len(names)}'
    )
  first = plan.index(from_stage)
  # A stage that runs anew has its pre-stage anew.
  first -= exp.stages[first].prepared
  phases = ['teacher', *plan[:first]]
  for phase in phases:
    if not checkpoints.is_finished(source / phase):
      raise UserError(
        f'--from_workdir={source}: its phase {phase} is not finished'
      )
  _check_adopted(exp, source, phases[1:])
  return phases


def _check_adopted(exp: Experiment, source: Path, phases: list[str]) -> None:
  """Adopted phases must fit this config's data and networks."""
  teacher = checkpoints.teacher_checkpoint(str(source))
  checkpoints.read_variables(
    teacher, blocks.shapes(exp.teacher_network, exp.image_shape)
  )
  for stage in exp.stages[: len(phases)]:
    shapes = blocks.shapes(exp.network(stage), exp.image_shape)
    directory = source / stage.name
    checkpoints.read_trained(directory, shapes, stage.trained)
    spec = exp.spec(stage, plan_augmentation(exp.config), local=True)
    if spec.objective.goes_on:
      state = step.state_shapes(spec)
      checkpoints.read_learned(
        directory, state.params[-1], state.objective_state
      )
  fields = [f'data.{field}' for field in exp.config['data']]
  _check_same(exp, source, '--from_workdir', fields)


def check_teacher(exp: Experiment) -> Path | None:
  """Where an existing teacher is to be read, checked to fit."""
  path = exp.config['teacher']['checkpoint']
  if not path:
    return None
  directory = checkpoints.teacher_checkpoint(path)
  _check_imported(exp, directory.parent)
  checkpoints.read_variables(
    directory, blocks.shapes(exp.teacher_network, exp.image_shape)
  )
  fields = ['data.classes', 'data.image_shape']
  source = buckets.path(path, 'teacher.checkpoint')
  _check_same(exp, source, 'teacher.checkpoint', fields)
  return directory


def _check_imported(exp: Experiment, directory: Path) -> None:
  """Refuses an imported teacher that is another network than this run's."""
  described = imported.description(directory)
  if described is None:
    return
  own = workdir.flat(exp.config)
  for flag, field in (
    ('model', 'teacher.model'),
    ('num_classes', 'data.classes'),
    ('image_shape', 'data.image_shape'),
  ):
    if own[field] != described[flag]:
      there = described[flag]
      if flag == 'image_shape':
        there = ','.join(map(str, there))
      raise UserError(
        f'teacher.checkpoint = {str(directory)!r}: {described["file"]} was '
        f'imported with --{flag}={there}, but here {field} = {own[field]!r}'
      )


def _check_same(
  exp: Experiment, source: Path, what: str, fields: list[str]
) -> None:
  """Refuses another run whose config differs in one of `fields`.

  Weights alone don't tell: convolutions fit images of any size.
  """
  path = source / 'config.json'
  if not path.exists():
    return
  # What an older version did not know counts as its default.
  known = workdir.flat(config.defaults())
  other = {**known, **workdir.flat(workdir.read_json(path))}
  own = {**known, **workdir.flat(exp.config)}
  for field in fields:
    # Where the files are does not matter.
    if field != 'data.dir' and own.get(field) != other.get(field):
      raise UserError(
        f'{what} = {str(source)!r}: that run has {field} = '
        f'{other.get(field)!r}, but here it is {own.get(field)!r}'
      )
