"""A finished workdir without a run: random weights, for what is shipped."""

from pathlib import Path
from typing import Any

import tiny
import tiny_run

from cbkd_jax import blocks, checkpoints, experiment, student, workdir
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data.augment import Augmentation

NAMES = tuple(f'digit {i}' for i in range(10))
AUGMENTATION = Augmentation(pad=0, flip=True, mean=(0.3,), std=(0.2,))


def write(directory: Path, **changes: Any) -> tuple[Network, Variables]:
  """Makes the workdir of a run of `tiny_run`.

  Args:
    directory: is made.
    **changes: of the config, as `tiny_run.values` takes them.

  Returns:
    The student, and its variables.
  """
  values = tiny_run.values(**changes)
  exp = experiment.build(values)
  network = exp.predicting_network(exp.stages[-1])
  variables = tiny.draw(network)
  directory.mkdir(parents=True)
  student.save(directory / 'student', exp, variables, AUGMENTATION, NAMES)
  teacher = tiny.draw(exp.local.network(), seed=1)
  # As an import leaves it; a run's own would be in 'teacher'.
  checkpoints.write_variables(directory / 'state', teacher)
  workdir.write_json(directory / 'config.json', values)
  return network, variables


def teacher(directory: Path) -> tuple[Network, Variables]:
  """The workdir's teacher."""
  exp = experiment.build(workdir.read_json(directory / 'config.json'))
  network = exp.local.network()
  template = blocks.shapes(network, exp.image_shape)
  return network, checkpoints.read_variables(directory / 'state', template)
