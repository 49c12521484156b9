"""From a model's name to its `Architecture`; one module per family."""

import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from cbkd_jax.blocks import Architecture
from cbkd_jax.errors import UserError, nearest
from cbkd_jax.models import (
  convnext,
  densenet,
  imagenet_resnet,
  mobilenet,
  resnet,
  shufflenet,
  shufflenet_v2,
  vgg,
  vit,
  wrn,
)

_MODELS: dict[str, Callable[..., Architecture]] = {
  **resnet.MODELS,
  **imagenet_resnet.MODELS,
  **vgg.MODELS,
  **wrn.MODELS,
  **mobilenet.MODELS,
  **shufflenet.MODELS,
  **shufflenet_v2.MODELS,
  **densenet.MODELS,
  **convnext.MODELS,
  **vit.MODELS,
}

# Families with more names than are worth listing: name -> function or None.
_FINDERS = (wrn.find, densenet.find)
_PATTERNS = ('wrn_<depth>_<widen>', 'densenet_bc_<depth>_<growth>')

_MIN_SIDE = 8
_CHANNELS = (1, 3)


def known() -> list[str]:
  """The listed names; some families have more, see `choices`."""
  return list(_MODELS)


def choices() -> list[str]:
  """What a model's name may be: the listed ones, and patterns of others."""
  return [*_MODELS, *_PATTERNS, 'package.module:function']


def build(
  name: str,
  num_classes: int,
  image_shape: Sequence[int],
  dtype: Any = jnp.float32,
  axis_name: str | None = None,
) -> Architecture:
  """The architecture called `name`.

  Args:
    name: one of `choices()`; `package.module:function` is a function of one's
      own, which is called with the other arguments as keywords.
    num_classes: the number of logits.
    image_shape: (height, width, channels).
    dtype: compute dtype; parameters and statistics stay float32.
    axis_name: the replicas' axis, over which training synchronises the batch
      statistics; None keeps them per replica.

  Raises:
    UserError: the name is unknown, its import fails or gives something else,
      or the images don't suit the model.
  """
  arguments = {
    'num_classes': num_classes,
    'image_shape': tuple(image_shape),
    'dtype': dtype,
    'axis_name': axis_name,
  }
  if ':' in name:
    return _build_own(name, arguments)
  function = _find(name)
  _check(name, num_classes, arguments['image_shape'])
  return function(**arguments)


def _find(name: str) -> Callable[..., Architecture]:
  if name in _MODELS:
    return _MODELS[name]
  for finder in _FINDERS:
    function = finder(name)
    if function is not None:
      return function
  raise UserError(
    f"model '{name}' is not known{nearest(name, _MODELS)}; known: "
    + ', '.join(choices())
  )


def _check(name: str, num_classes: int, image_shape: tuple[int, ...]) -> None:
  if num_classes < 1:
    raise UserError(f"model '{name}': {num_classes} classes; at least 1 needed")
  if len(image_shape) != 3:
    raise UserError(
      f"model '{name}': image shape {image_shape} is not (height, width, "
      'channels)'
    )
  *sides, channels = image_shape
  if min(sides) < _MIN_SIDE:
    raise UserError(
      f"model '{name}': image shape {image_shape} has a side of {min(sides)} "
      f'pixels; at least {_MIN_SIDE} are allowed'
    )
  if channels not in _CHANNELS:
    allowed = ' or '.join(map(str, _CHANNELS))
    raise UserError(
      f"model '{name}': image shape {image_shape} has {channels} channels; "
      f'{allowed} are allowed'
    )


def _build_own(name: str, arguments: dict[str, Any]) -> Architecture:
  """Imports and calls a function of the user's, `package.module:function`."""
  module_name, _, attribute = name.partition(':')
  if not all(part.isidentifier() for part in module_name.split('.')):
    raise UserError(f"model '{name}': '{module_name}' is not a module's name")
  try:
    module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    # Its own name, or that of a module it imports.
    missing = error.name or module_name
    raise UserError(f"model '{name}': no module '{missing}'") from error
  except ImportError as error:
    reason = ' '.join(str(error).split())
    raise UserError(f"model '{name}': {reason}") from error
  function = getattr(module, attribute, None)
  if not callable(function):
    raise UserError(
      f"model '{name}': module '{module_name}' has no function '{attribute}'"
    )
  try:
    inspect.signature(function).bind(**arguments)
  except (TypeError, ValueError) as error:
    raise UserError(
      f"model '{name}': {error}; it is called with {', '.join(arguments)}"
    ) from error
  result = function(**arguments)
  if not isinstance(result, Architecture):
    raise UserError(
      f"model '{name}' returned {type(result).__name__}, not an Architecture"
    )
  return result
