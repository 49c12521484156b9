"""A config's networks: the teacher's architecture and the student's sizes."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from cbkd_jax import (
  blocks,
  compression,
  initialization,
  models,
  objectives,
  prediction,
  wrapping,
)
from cbkd_jax.blocks import Architecture, Network
from cbkd_jax.budget_costs import Choice
from cbkd_jax.compression import Student
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


def family(
  config: Mapping[str, Any], teacher: Architecture, axis_name: str | None
) -> Architecture | None:
  """Another family that the student's blocks are of, cut like the teacher.

  Args:
    config: nested plain values.
    teacher: the teacher's architecture.
    axis_name: as in `model`.

  Returns:
    The architecture; None where the student is of the teacher's family.

  Raises:
    UserError: naming the field of `compression` and what is allowed.
  """
  fields, found = config['compression'], None
  if fields['model']:
    own = model(config, 'compression.model', axis_name)
    image_shape = tuple(config['data']['image_shape'])
    found = cut_alike(
      own,
      teacher,
      inherit=config['inherit'],
      image_shape=image_shape,
      name=fields['model'],
      width_multiple_of=fields['width_multiple_of'],
    )
    if fields['probe'] and not wrapping.end_alike(own, teacher, image_shape):
      raise UserError(
        'compression.probe = True: must be False with compression.model = '
        f'{fields["model"]!r}, whose deepest block does not end at the '
        "teacher's size"
      )
  refused = None
  if fields['init'] == 'slice' and (found or teacher).wiring is None:
    refused = 'this teacher.model gives no wiring'
    if found:
      refused = 'nothing of the teacher fits the layers of compression.model'
  if fields['init'] == 'pca' and not (found or teacher).adapted:
    refused = (
      'fits 1x1 adapters, which the blocks of this teacher.model do without'
    )
  if refused:
    others = [i for i in initialization.INITS if i != fields['init']]
    raise UserError(
      f'compression.init = {fields["init"]!r}: {refused}; '
      f'allowed: {", ".join(others)}'
    )
  return found


def student(
  config: Mapping[str, Any],
  teacher: Architecture,
  other: Architecture | None,
  keep: Sequence[float],
  any_order: bool = False,
) -> Student:
  """The compressed network that a config describes, at whatever keep ratios.

  Args:
    config: nested plain values.
    teacher: the teacher's architecture.
    other: the student's `family`.
    keep: a ratio for each block.
    any_order: permit ratios that grow with depth, whatever the config says.

  Raises:
    UserError: naming the field of `compression` and what is allowed.
  """
  fields = config['compression']
  return compression.compress(
    teacher,
    family=other,
    keep=keep,
    depth=fields['depth'],
    inherit=config['inherit'],
    width_multiple_of=fields['width_multiple_of'],
    allow_any_order=any_order or fields['allow_any_order'],
  )


def check_probe(
  config: Mapping[str, Any],
  teacher: Architecture,
  other: Architecture | None,
) -> None:
  """Makes the students that a probe tries: it comes after the teacher.

  Args:
    config: nested plain values.
    teacher: the teacher's architecture.
    other: the student's `family`.

  Raises:
    UserError: a keep ratio is not possible.
  """
  inherit, ratios = config['inherit'], config['compression']['probe_keep']
  for ratio in ratios:
    compressed = len(teacher.widths) - inherit
    keep = (1.0,) * inherit + (ratio,) * compressed
    try:
      tried = student(config, teacher, other, keep)
      network = tried.network(jnp.dtype(config['compute_dtype']), folded=False)
      blocks.shapes(network, tuple(config['data']['image_shape']))
    except UserError as error:
      raise UserError(
        f'compression.probe_keep = {ratios}: {ratio:g}: {error}'
      ) from None


def choice(
  config: Mapping[str, Any],
  teacher: Architecture,
  other: Architecture | None,
  objective: str,
) -> Choice:
  """The students among which `compression.target` chooses.

  Args:
    config: nested plain values.
    teacher: the teacher's architecture, without a replicas' axis.
    other: the student's `family`, likewise.
    objective: of the last stage, which may give the student a head.
  """
  parsed = objectives.parse(objective)
  dtype = jnp.dtype(config['compute_dtype'])
  inherit = config['inherit']

  def network(sized: Student) -> Network:
    folded = sized.network(dtype, folded=True)
    return prediction.network(
      parsed, folded, teacher.head(), teacher.widths[-1]
    )

  return Choice(
    student=functools.partial(student, config, teacher, other, any_order=True),
    network=network,
    teacher=teacher.network(),
    widths=teacher.widths[:inherit] + (other or teacher).widths[inherit:],
    image_shape=tuple(config['data']['image_shape']),
    inherit=inherit,
    any_order=config['compression']['allow_any_order'],
  )


def cut_alike(
  family: Architecture,
  teacher: Architecture,
  *,
  inherit: int,
  image_shape: tuple[int, int, int],
  name: str,
  width_multiple_of: int,
) -> Architecture:
  """`wrapping.cut_alike`, its error in terms of the config.

  Args:
    family: what `compression.model` names.
    teacher: the teacher's architecture.
    inherit: how many of the shallowest blocks are the teacher's own.
    image_shape: (height, width, channels).
    name: the value of `compression.model`.
    width_multiple_of: as in `wrapping.cut_alike`.

  Raises:
    UserError: the two can't be cut alike.
  """
  try:
    return wrapping.cut_alike(
      family, teacher, inherit, image_shape, width_multiple_of
    )
  except wrapping.CutError as error:
    raise UserError(f'compression.model = {name!r}: {error}') from None
