"""The finished student on disk, and as a function from images to logits."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import (
  blocks,
  buckets,
  checkpoints,
  compression,
  models,
  networks,
  objectives,
  prediction,
  processes,
  workdir,
)
from cbkd_jax.blocks import Architecture, Network, Variables
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.errors import UserError
from cbkd_jax.experiment import Experiment


def save(
  directory: Path,
  exp: Experiment,
  variables: Variables,
  augmentation: Augmentation,
  class_names: Sequence[str],
) -> None:
  """Writes `weights/` (orbax) and model.json, which says how to rebuild it.

  Args:
    directory: `workdir/student`.
    exp: the run.
    variables: of the folded student, with the head that it predicts with.
    augmentation: its mean and std belong to the student.
    class_names: what the data set calls its classes, by label.
  """
  if not processes.is_first():
    return
  directory.mkdir(exist_ok=True)
  checkpoints.write_variables(directory / 'weights', variables)
  student = exp.student
  last = exp.stages[-1]
  predictor = objectives.parse(last.objective).predictor
  fields = exp.config['compression']
  other = {
    'name': fields['model'],
    'width_multiple_of': fields['width_multiple_of'],
  }
  workdir.write_json(
    directory / 'model.json',
    {
      'family': exp.config['teacher']['model'],
      'blocks': len(student.widths),
      'inherit': student.inherit,
      'widths': student.widths,
      'reduce': student.inputs,
      'units': student.units,
      'input_shape': exp.image_shape,
      'classes': exp.config['data']['classes'],
      'class_names': list(class_names),
      'compute_dtype': exp.config['compute_dtype'],
      'mean': augmentation.mean,
      'std': augmentation.std,
      # Of the blocks that are not inherited, where it is another one.
      **({'student_family': other} if fields['model'] else {}),
      # A head that the last stage's objective gave the student.
      **({'head': str(predictor)} if predictor else {}),
      # What its weights were trained to bear.
      **({'quantize': last.quantize} if last.quantize else {}),
    },
  )


def build(model: Mapping[str, Any]) -> Network:
  """The folded student that a model.json describes."""
  dtype = jnp.dtype(model['compute_dtype'])
  image_shape = tuple(model['input_shape'])

  def named(name: str) -> Architecture:
    return models.build(name, model['classes'], image_shape, dtype)

  architecture = family = named(model['family'])
  if other := model.get('student_family'):
    family = networks.cut_alike(
      named(other['name']),
      architecture,
      inherit=model['inherit'],
      image_shape=image_shape,
      name=other['name'],
      width_multiple_of=other['width_multiple_of'],
    )
  student = compression.Student(
    architecture,
    family,
    model['inherit'],
    tuple(model['widths']),
    tuple(model['reduce']),
    tuple(model['units']),
  ).network(dtype, folded=True)
  if 'head' not in model:
    return student
  objective = objectives.parse(model['head'])
  width = architecture.widths[-1]
  return prediction.network(objective, student, architecture.head(), width)


def check_finished(directory: Path) -> None:
  """Refuses a run that has not saved its student yet.

  Args:
    directory: `workdir/student`.

  Raises:
    UserError: naming the workdir.
  """
  if not (directory / 'model.json').exists():
    raise UserError(
      f'{directory.parent}: holds no finished student; run cbkd_jax.train '
      'with this workdir to its end'
    )


def read_model(directory: Path) -> dict[str, Any]:
  """What model.json says; classes that an older version named are numbers.

  Args:
    directory: `workdir/student`.

  Raises:
    UserError: there is no finished student.
  """
  check_finished(directory)
  model = workdir.read_json(directory / 'model.json')
  return {'class_names': [str(i) for i in range(model['classes'])], **model}


def read(directory: Path) -> tuple[Network, Variables, Augmentation]:
  """The saved student: network, variables, and its mean and std.

  Args:
    directory: `workdir/student`.

  Raises:
    UserError: there is no finished student.
  """
  model = read_model(directory)
  network = build(model)
  template = blocks.shapes(network, tuple(model['input_shape']))
  variables = checkpoints.read_variables(directory / 'weights', template)
  augmentation = Augmentation(
    0, False, tuple(model['mean']), tuple(model['std'])
  )
  return network, variables, augmentation


def load_student(
  directory: str | Path,
) -> Callable[[np.ndarray], jax.Array]:
  """The student of a finished run.

  Args:
    directory: the run's workdir; may be in a bucket.

  Returns:
    A compiled function from images, uint8 `[batch, height, width, channels]`
    as the data set has them, to logits, float32 `[batch, classes]`. It
    normalises the images itself.

  Raises:
    UserError: the workdir has no finished student.
  """
  network, variables, augmentation = read(
    buckets.path(directory, 'directory') / 'student'
  )

  @jax.jit
  def logits(images: jax.Array) -> jax.Array:
    return blocks.logits(network, variables, normalise(images, augmentation))

  return logits
