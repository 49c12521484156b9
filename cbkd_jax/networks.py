"""A config's networks: the teacher's architecture and the student's sizes."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from cbkd_jax import compression, initialization, models, wrapping
from cbkd_jax.blocks import Architecture
from cbkd_jax.errors import UserError


def model(
  config: Mapping[str, Any], field: str, axis_name: str | None
) -> Architecture:
  """The architecture that a field of the config names.

  Args:
    config: nested plain values.
    field: 'teacher.model' or 'compression.model'.
    axis_name: the replicas' axis, over which training synchronises the batch
      statistics; None keeps them per replica.

  Raises:
    UserError: there is no such model, or it can't be built.
  """
  section, key = field.split('.')
  data = config['data']
  try:
    return models.build(
      config[section][key],
      num_classes=data['classes'],
      image_shape=tuple(data['image_shape']),
      dtype=jnp.dtype(config['compute_dtype']),
      axis_name=axis_name,
    )
  except UserError as error:
    raise UserError(f'{field}: {error}') from None


def student(
  config: Mapping[str, Any], teacher: Architecture, axis_name: str | None
) -> compression.Student:
  """The compressed network that a config describes.

  Args:
    config: nested plain values.
    teacher: the teacher's architecture.
    axis_name: as in `model`.

  Raises:
    UserError: naming the field of `compression` and what is allowed.
  """
  fields, family = config['compression'], None
  if fields['model']:
    family = cut_alike(
      model(config, 'compression.model', axis_name),
      teacher,
      inherit=config['inherit'],
      image_shape=tuple(config['data']['image_shape']),
      name=fields['model'],
    )
  if fields['init'] == 'slice' and (family or teacher).wiring is None:
    why = 'compression.model is set, and nothing of the teacher fits its layers'
    if family is None:
      why = 'this teacher.model gives no wiring'
    raise UserError(
      f"compression.init = 'slice': {why}; "
      f'allowed: {", ".join(i for i in initialization.INITS if i != "slice")}'
    )
  return compression.compress(
    teacher,
    family=family,
    keep=fields['keep'],
    depth=fields['depth'],
    inherit=config['inherit'],
    width_multiple_of=fields['width_multiple_of'],
    allow_any_order=fields['allow_any_order'],
  )


def cut_alike(
  family: Architecture,
  teacher: Architecture,
  *,
  inherit: int,
  image_shape: tuple[int, int, int],
  name: str,
) -> Architecture:
  """`wrapping.cut_alike`, its error in terms of the config.

  Args:
    family: what `compression.model` names.
    teacher: the teacher's architecture.
    inherit: how many of the shallowest blocks are the teacher's own.
    image_shape: (height, width, channels).
    name: the value of `compression.model`.

  Raises:
    UserError: the two can't be cut alike.
  """
  try:
    return wrapping.cut_alike(family, teacher, inherit, image_shape)
  except wrapping.CutError as error:
    raise UserError(f'compression.model = {name!r}: {error}') from None
