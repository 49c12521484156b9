"""A finished run's workdir with weights of no meaning, in a second."""

from pathlib import Path
from typing import Any

import tiny
import tiny_run

from cbkd_jax import checkpoints, experiment, student, workdir
from cbkd_jax.data.augment import Augmentation

AUGMENTATION = Augmentation(pad=0, flip=False, mean=(0.3,), std=(0.2,))
NAMES = tuple('abcdefghij')


def write(directory: Path, **changes: Any) -> Path:
  """Writes config, teacher and student.

  Args:
    directory: the workdir; is made.
    **changes: of `tiny_run`'s config.
  """
  values = tiny_run.values(**changes)
  exp = experiment.build(values)
  directory.mkdir()
  workdir.write_json(directory / 'config.json', values)
  teacher = tiny.draw(exp.local.network())
  checkpoints.write_variables(directory / 'state', teacher)
  network = exp.network(exp.stages[-1], local=True)
  variables = tiny.draw(network, seed=1)
  student.save(directory / 'student', exp, variables, AUGMENTATION, NAMES)
  return directory
