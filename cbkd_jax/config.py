"""Checks of single config fields: type-safe by ml_collections, ranges here."""

import importlib
import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cbkd_jax.errors import UserError, nearest
from cbkd_jax.stages import ORDERS


def _number(value: Any) -> bool:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )


def _above_zero(value: Any) -> bool:
  return _number(value) and value > 0


def _from_zero(value: Any) -> bool:
  return _number(value) and value >= 0


def _fraction(value: Any) -> bool:
  return _number(value) and 0 <= value < 1


def _below_one(value: Any) -> bool:
  return _above_zero(value) and value < 1


def _count(value: Any) -> bool:
  return isinstance(value, int) and value >= 1


def _from_zero_count(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _numbers(value: Any) -> bool:
  return isinstance(value, tuple) and all(map(_number, value))


def _counts(value: Any) -> bool:
  return isinstance(value, tuple) and all(map(_count, value))


_PHASE = {
  'epochs': (_above_zero, 'a number above 0'),
  'steps': (_count, 'an integer of at least 1, or None'),
  'learning_rate': (_above_zero, 'a number above 0'),
  'warmup': (_fraction, 'a fraction from 0 to below 1'),
  'milestones': (
    lambda v: isinstance(v, tuple) and all(map(_fraction, v)),
    'a tuple of fractions from 0 to below 1',
  ),
  'decay': (_above_zero, 'a number above 0'),
  'momentum': (_fraction, 'a fraction from 0 to below 1'),
  'weight_decay': (_from_zero, 'a number of at least 0'),
  'clip_norm': (_from_zero, 'a number of at least 0 (0: no clipping)'),
}

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'seed': (
    lambda v: isinstance(v, int) and 0 <= v < 2**31,
    'an integer from 0 to 2147483647',
  ),
  'batch_size': (_count, 'an integer of at least 1'),
  'micro_batches': (_count, 'an integer of at least 1'),
  'eval_batch_size': (_count, 'an integer of at least 1'),
  'inherit': (_count, 'an integer of at least 1'),
  'steps_per_call': (_count, 'an integer of at least 1, or None'),
  'checkpoint_every_steps': (_count, 'an integer of at least 1'),
  'log_every_steps': (_count, 'an integer of at least 1'),
  'mesh.data': (_count, 'an integer of at least 1, or None'),
  'mesh.model': (_count, 'an integer of at least 1'),
  'cache.views': (_from_zero_count, 'an integer of at least 0'),
  'cache.limit_mib': (_above_zero, 'a number above 0, or None'),
  'data.classes': (
    lambda v: isinstance(v, int) and v >= 2,
    'an integer of at least 2',
  ),
  'data.image_shape': (
    lambda v: _counts(v) and len(v) == 3,
    '(height, width, channels)',
  ),
  'data.train_size': (_count, 'an integer of at least 1'),
  'data.validation_size': (_from_zero, 'an integer of at least 0'),
  'data.resize': (_from_zero, 'an integer of at least 0'),
  'data.workers': (_from_zero_count, 'an integer of at least 0'),
  'data.crop_area': (
    lambda v: _above_zero(v) and v <= 1,
    'a number above 0 and at most 1',
  ),
  'data.pad': (_from_zero, 'an integer of at least 0'),
  'data.cutout': (_from_zero, 'an integer of at least 0 (0: off)'),
  'data.mixup': (_from_zero, 'a number of at least 0 (0: off)'),
  'data.cutmix': (_from_zero, 'a number of at least 0 (0: off)'),
  'data.mean': (_numbers, 'a tuple of one number per channel, or ()'),
  'data.std': (
    lambda v: _numbers(v) and all(x > 0 for x in v),
    'a tuple of one number above 0 per channel, or ()',
  ),
  'compression.keep': (_numbers, 'a tuple of one number per block'),
  'compression.depth': (_counts, 'a tuple of one integer per block, or ()'),
  'compression.probe_keep': (
    lambda v: isinstance(v, tuple) and v and all(map(_below_one, v)),
    'a tuple of numbers above 0 and below 1',
  ),
  'compression.probe_steps': (_count, 'an integer of at least 1'),
  'compression.width_multiple_of': (_count, 'an integer of at least 1'),
  'thaw.quantize': (
    lambda v: v in ('', 'int8'),
    "'int8', or '' for no quantisation",
  ),
}

_CHOICES = {
  'order': ORDERS,
  'compute_dtype': ('float32', 'bfloat16'),
  'spmd': ('pmap', 'shard_map', 'jit'),
  'data.pipeline': ('resident', 'stream'),
  'data.crop': ('none', 'random_resized'),
  'cache.dtype': ('exact', 'bfloat16', 'uint8'),
  'cache.place': ('auto', 'device', 'host'),
}
_PHASE_CHOICES = {
  'optimizer': ('sgd', 'adamw', 'muon'),
  'schedule': ('cosine', 'step', 'constant'),
}


def defaults() -> dict[str, Any]:
  """Every field's default, as nested plain values."""
  add_configs_to_path()
  return plain(importlib.import_module('configs.default').get_config())


def with_defaults(found: Mapping[str, Any]) -> dict[str, Any]:
  """A run's config; what an older version did not know is default.

  Args:
    found: what its config.json holds.
  """

  def merged(default: Mapping[str, Any], own: Mapping[str, Any]) -> dict:
    both = {**default, **own}
    for key, value in own.items():
      if isinstance(value, Mapping) and isinstance(default.get(key), Mapping):
        both[key] = merged(default[key], value)
    return both

  return merged(defaults(), found)


def add_configs_to_path() -> None:
  """Makes `configs.default` ours in any directory.

  A folder `configs` of the user's own, in the current directory, is searched
  after it.
  """
  own = Path(__file__).resolve().parent.parent / 'configs'
  if str(own) in getattr(sys.modules.get('configs'), '__path__', ()):
    return
  spec = importlib.util.spec_from_file_location(
    'configs',
    own / '__init__.py',
    submodule_search_locations=[str(own), str(Path.cwd() / 'configs')],
  )
  sys.modules['configs'] = module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)


def plain(config: ConfigDict) -> dict[str, Any]:
  """The config as nested plain values: no later change reaches a run."""
  return {
    key: plain(value) if isinstance(value, ConfigDict) else value
    for key, value in config.items()
  }


def with_objective(config: Mapping[str, Any], objective: str) -> dict[str, Any]:
  """The config with one objective in every phase."""
  overrides = config['stage_overrides'].items()
  return {
    **config,
    'objective': objective,
    'thaw': {**config['thaw'], 'objective': None},
    'stage_overrides': {k: {**v, 'objective': None} for k, v in overrides},
  }


def check(config: Mapping[str, Any]) -> None:
  """Checks every field by itself.

  Args:
    config: nested plain values.

  Raises:
    UserError: the first field that is missing, unknown or out of its range,
      with its value and what is allowed.
  """
  # With NumPy and JAX, so not for --help.
  from cbkd_jax import budget
  from cbkd_jax.initialization import INITS

  _check_fields(config, defaults(), '')
  ranges, choices = dict(_RANGES), {**_CHOICES, 'compression.init': INITS}
  groups = ['teacher', 'stage', 'thaw']
  groups += [f'stage_overrides.{name}' for name in config['stage_overrides']]
  for group in groups:
    ranges |= {f'{group}.{name}': rule for name, rule in _PHASE.items()}
    choices |= {f'{group}.{name}': v for name, v in _PHASE_CHOICES.items()}
  for field, (valid, allowed) in ranges.items():
    value = _get(config, field)
    optional = field.startswith('stage_overrides') or 'None' in allowed
    if value is None and optional:
      continue
    if not valid(value):
      raise UserError(f'{field} = {value!r}: must be {allowed}')
  for field, allowed in choices.items():
    value = _get(config, field)
    if value is None and field.startswith('stage_overrides'):
      continue
    if value not in allowed:
      hint = nearest(str(value), allowed)
      raise UserError(
        f'{field} = {value!r}: must be one of {", ".join(allowed)}{hint}'
      )
  if config['compression']['target']:
    budget.parse(config['compression']['target'])
  elif config['compression']['probe']:
    raise UserError(
      'compression.probe = True: goes with compression.target, which is '
      "'': without a budget there is nothing to decide"
    )
  channels = config['data']['image_shape'][-1]
  for name in 'mean', 'std':
    if len(config['data'][name]) not in (0, channels):
      raise UserError(
        f'data.{name} = {config["data"][name]!r}: must have one entry per '
        f'channel, {channels}, or be ()'
      )


def _check_fields(config: Any, default: Any, prefix: str) -> None:
  for key in dict.fromkeys([*config, *default]):
    field = f'{prefix}{key}'
    if key not in default:
      raise UserError(f'{field}: no such field{nearest(key, default)}')
    if key not in config:
      raise UserError(f'{field}: missing; start from configs/default.py')
    if isinstance(default[key], Mapping) != isinstance(config[key], Mapping):
      raise UserError(f'{field} = {config[key]!r}: wrong kind of value')
    if isinstance(default[key], Mapping):
      _check_fields(config[key], default[key], f'{field}.')


def _get(config: Mapping[str, Any], field: str) -> Any:
  for name in field.split('.'):
    config = config[name]
  return config
