"""What a run takes over from others: finished phases, a teacher."""

import contextlib
from pathlib import Path

from cbkd_jax import blocks, checkpoints
from cbkd_jax.errors import UserError
from cbkd_jax.experiment import Experiment


def adopted_phases(
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
    if not is_finished(source / phase):
      raise UserError(
        f'--from_workdir={source}: its phase {phase} is not finished'
      )
  _check_adopted(exp, source, phases[1:])
  return phases


def is_finished(directory: Path) -> bool:
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
    checkpoints.read_trained(
      source / stage.name,
      blocks.shapes(exp.network(stage), exp.image_shape),
      stage.trained,
    )


def check_teacher(exp: Experiment) -> Path | None:
  """Where an existing teacher is to be read, checked to fit."""
  path = exp.config['teacher']['checkpoint']
  if not path:
    return None
  directory = checkpoints.teacher_checkpoint(path)
  checkpoints.read_variables(
    directory, blocks.shapes(exp.teacher_network, exp.image_shape)
  )
  return directory
