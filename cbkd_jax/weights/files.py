"""State dicts in files: `.safetensors`, and PyTorch's own `.pth` and `.pt`.

A `.pth` is a pickle, that is a program. It is read by torch's reader of weights
alone, which makes tensors, plain containers and argparse's namespaces, and runs
nothing else.
"""

import argparse
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from cbkd_jax.errors import UserError

Arrays = dict[str, np.ndarray]

# Added around a network, in front of all of its names.
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'net.')
_ZIP, _PICKLE = b'PK\x03\x04', b'\x80'
# Older readers of weights alone can be made to run code (CVE-2025-32434).
_SAFE_TORCH = (2, 6)


def read(path: Path) -> dict[str, Arrays]:
  """Reads the state dicts in a file; what kind it is, its first bytes tell.

  Args:
    path: the file.

  Returns:
    Each entry of the file that is a state dict, by its name: '' for the file
    as a whole, 'model' for a dict's entry of that name. Arrays are in torch's
    layout and the file's type, names without 'module.' and the like.

  Raises:
    UserError: it can't be read, holds no state dict, or torch, which it needs,
      is not installed.
  """
  try:
    with path.open('rb') as file:
      start = file.read(9)
  except OSError as error:
    raise UserError(f'{path}: {error.strerror}') from None
  if start[:4] == _ZIP or start[:1] == _PICKLE:
    found = dict(_state_dicts(path, _read_pickle(path)))
  elif path.suffix == '.safetensors' or start[8:] == b'{':
    found = {'': _read_safetensors(path)}
  else:
    raise UserError(
      f'{path}: neither a state dict of PyTorch nor a safetensors file'
    )
  found = {name: without_prefix(arrays) for name, arrays in found.items()}
  if not any(found.values()):
    raise UserError(f'{path}: holds no tensors')
  return found


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a state dict as a safetensors file, all of it or nothing.

  Args:
    path: the file; one that is there is replaced.
    arrays: by torch's names, in torch's layout.

  Raises:
    UserError: the file can't be written.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    save_file(
      {name: np.ascontiguousarray(array) for name, array in arrays.items()},
      temporary,
      metadata={'format': 'pt'},
    )
    temporary.replace(path)
  except (OSError, safetensors.SafetensorError) as error:
    temporary.unlink(missing_ok=True)
    raise UserError(f'{path}: {error}') from None


def without_prefix(arrays: Arrays) -> Arrays:
  """The same without what a wrapper has put in front of every name."""
  for prefix in _PREFIXES:
    if arrays and all(name.startswith(prefix) for name in arrays):
      return without_prefix(
        {name.removeprefix(prefix): value for name, value in arrays.items()}
      )
  return arrays


def _read_safetensors(path: Path) -> Arrays:
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except AttributeError as error:  # 8-bit floats, which NumPy has not
    raise UserError(f'{path}: {error}') from None
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f'{path}: cannot be read as a safetensors file, is it damaged? {error}'
    ) from None


def _read_pickle(path: Path) -> Any:
  """What torch's reader of weights alone makes of the file.

  Raises:
    UserError: the file holds more than weights, or is damaged.
  """
  torch = _torch(path)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of torch's, about its own storages
      # Training scripts keep their options beside the weights.
      with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)
  except Exception as error:
    reason = _reason(error)
    if 'GLOBAL' in reason or 'Unsupported class' in reason:
      raise UserError(
        f'{path}: holds more than weights, and nothing of it was run: {reason}'
        '; save its state dict alone, or as .safetensors'
      ) from None
    raise UserError(
      f'{path}: cannot be read as a state dict of PyTorch, is it damaged? '
      f'{reason}'
    ) from None


def _torch(path: Path) -> Any:
  needs = "needs torch; pip install torch (the extra 'torch')"
  try:
    if importlib.util.find_spec('torch') is None:
      raise ImportError
    import torch
  except (ImportError, ValueError):  # ValueError: hidden by sys.modules
    raise UserError(
      f'{path}: a file of PyTorch {needs}; .safetensors files need nothing'
    ) from None
  version = tuple(int(n) for n in torch.__version__.split('.')[:2])
  if version < _SAFE_TORCH:
    raise UserError(
      f'{path}: torch {torch.__version__} may run code in it; '
      "pip install 'torch>=2.6'"
    )
  return torch


def _reason(error: Exception) -> str:
  """The error's own words, without torch's advice to trust the file."""
  text = ' '.join(str(error).split()) or type(error).__name__
  text = text.rpartition('WeightsUnpickler error: ')[2]
  for advice in ('. ', ' Please ', ' Check the documentation'):
    text = text.partition(advice)[0]
  return text[:160]


def _state_dicts(path: Path, found: Any) -> Iterator[tuple[str, Arrays]]:
  """The state dicts in what a file holds: mappings of names to tensors.

  Raises:
    UserError: there is none, or a tensor of it is no plain array.
  """
  tensor = _torch(path).Tensor

  def walk(name: str, value: Any) -> Iterator[tuple[str, Arrays]]:
    if not isinstance(value, Mapping):
      return
    if value and all(
      isinstance(k, str) and isinstance(v, tensor) for k, v in value.items()
    ):
      yield name, {k: _array(path, k, v) for k, v in value.items()}
      return
    for key, inner in value.items():
      if isinstance(key, str):  # an optimiser's are numbered
        yield from walk(f'{name}.{key}' if name else key, inner)

  entries = list(walk('', found))
  if not entries:
    what = type(found).__name__
    if isinstance(found, Mapping):
      what += f' of {", ".join(map(str, list(found)[:5])) or "nothing"}'
    raise UserError(f'{path}: holds no state dict, but a {what}')
  yield from entries


def _array(path: Path, name: str, tensor: Any) -> np.ndarray:
  import torch

  try:
    if tensor.dtype == torch.bfloat16:
      bits = tensor.detach().contiguous().view(torch.int16).numpy()
      return bits.view(jnp.bfloat16)
    return tensor.detach().numpy()
  except (RuntimeError, TypeError) as error:
    raise UserError(f'{path}: {name}: {_reason(error)}') from None
