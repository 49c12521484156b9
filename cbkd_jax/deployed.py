"""A network as it is shipped: one pure function of its arrays and images.

It has nothing of the training in it: adapters are multiplied into one another,
normalisations into the convolutions before them where that is exact, and all
is computed in float32 whatever the run computed in.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import (
  blocks,
  checkpoints,
  finished_run,
  models,
  student,
  trees,
)
from cbkd_jax.blocks import Array, Network, Tree, Variables
from cbkd_jax.data import augment
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.models import folded
from cbkd_jax.models.folded import Norm

_DTYPE = 'float32'


@dataclasses.dataclass(frozen=True)
class Deployed:
  """A network in eval mode, ready to be written to a file.

  Attributes:
    function: `(arrays, images) -> logits`, float32 `[batch, classes]`; the same
      program on every backend, products of matrices in full float32.
    arrays: nested dicts of NumPy arrays, float32.
    model: what model.json says of it, which is all that the function is made
      of; 'compute_dtype' is float32.
    normalised: whether the function normalises its images itself.
    norms: the batch normalisations, and what each has been folded into; None:
      they are as in training, with their statistics among the arrays.
  """

  function: Callable[[Tree, Array], Array]
  arrays: Tree
  model: Mapping[str, Any]
  normalised: bool
  norms: tuple[Norm, ...] | None

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return tuple(self.model['input_shape'])

  @property
  def class_names(self) -> tuple[str, ...]:
    """By label."""
    return tuple(self.model['class_names'])

  @property
  def mean(self) -> tuple[float, ...]:
    """Per channel, of pixels scaled to 0..1."""
    return tuple(self.model['mean'])

  @property
  def std(self) -> tuple[float, ...]:
    """Per channel, of pixels scaled to 0..1."""
    return tuple(self.model['std'])

  @property
  def input_dtype(self) -> str:
    """Of the function's images."""
    return 'uint8' if self.normalised else 'float32'

  def prepare(self, images: np.ndarray) -> np.ndarray:
    """Images as the function wants them.

    Args:
      images: uint8 `[batch, height, width, channels]`, as the data set has
        them.

    Returns:
      The same, or normalised as float32.
    """
    if self.normalised:
      return images
    return normalise(images, self.mean, self.std)


def normalise(
  images: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
  """Shifts and scales pixels as in training, for a file that does not.

  Args:
    images: uint8 `[batch, height, width, channels]`.
    mean: per channel, of pixels scaled to 0..1.
    std: likewise.

  Returns:
    float32 `[batch, height, width, channels]`.
  """
  augmentation = Augmentation(0, False, tuple(mean), tuple(std))
  return np.asarray(augment.normalise(jnp.asarray(images), augmentation))


def student_of(
  directory: Path, *, normalise: bool, fold: bool = True
) -> Deployed:
  """The student of a finished run.

  Args:
    directory: the run's workdir; may be in a bucket.
    normalise: whether it is to normalise its images itself.
    fold: multiply normalisations into the convolutions before them.

  Raises:
    UserError: the run is not finished.
  """
  model = student.read_model(directory / 'student')
  return _of(model, directory / 'student' / 'weights', normalise, fold)


def teacher_of(
  directory: Path, *, normalise: bool, fold: bool = True
) -> Deployed:
  """The teacher of a finished run; as `student_of`."""
  values = finished_run.read_config(directory)
  model = student.read_model(directory / 'student')
  kept = ('input_shape', 'classes', 'class_names', 'mean', 'std')
  model = {
    'family': values['teacher']['model'],
    **{name: model[name] for name in kept},
  }
  weights = checkpoints.teacher_checkpoint(str(directory))
  return _of(model, weights, normalise, fold)


def network_of(model: Mapping[str, Any]) -> Network:
  """The network, in float32, that a `Deployed.model` describes."""
  if 'widths' in model:
    return student.build({**model, 'compute_dtype': _DTYPE})
  shape = tuple(model['input_shape'])
  return models.build(
    model['family'], model['classes'], shape, jnp.dtype(_DTYPE)
  ).network()


def _of(
  model: Mapping[str, Any], weights: Path, normalise: bool, fold: bool
) -> Deployed:
  """What a checkpoint holds, deployed."""
  model = {**model, 'compute_dtype': _DTYPE}
  network = network_of(model)
  shape = tuple(model['input_shape'])
  variables = checkpoints.read_variables(weights, blocks.shapes(network, shape))
  norms = folded.find(network, shape) if fold else None
  if norms is not None:
    variables = folded.fold(variables, norms)
  arrays = jax.tree.map(np.asarray, trees.from_variables(variables))
  return of_arrays(model, arrays, normalise=normalise, norms=norms)


def of_arrays(
  model: Mapping[str, Any],
  arrays: Tree,
  *,
  normalise: bool,
  norms: tuple[Norm, ...] | None,
) -> Deployed:
  """The deployed network of a description and its arrays.

  Args:
    model: as `Deployed.model`.
    arrays: as `Deployed.arrays`.
    normalise: whether it is to normalise its images itself.
    norms: as `Deployed.norms`.
  """
  network = network_of(model)
  names = trees.part_names(len(network.blocks))
  augmentation = Augmentation(
    0, False, tuple(model['mean']), tuple(model['std'])
  )

  def function(arrays: Tree, images: Array) -> Array:
    variables = Variables(
      *(
        tuple(arrays.get(kind, {}).get(name, {}) for name in names)
        for kind in ('params', 'batch_stats')
      )
    )
    with blocks.shipping(), jax.default_matmul_precision('highest'):
      if normalise:
        images = augment.normalise(images, augmentation)
      if norms is None:
        return blocks.logits(network, variables, images)
      return folded.logits(network, norms, variables, images)

  return Deployed(function, arrays, model, normalise, norms)
