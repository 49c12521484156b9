"""A network's arrays by name, with what it takes to rebuild it: safetensors.

For whoever runs the network with this package, trains it further, or takes it
to another framework by hand. The header says all that is needed, no code is in
it.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax import traverse_util
from safetensors.numpy import save

from cbkd_jax import deployed as deployed_
from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError
from cbkd_jax.models.folded import Norm

SUFFIX = '.safetensors'
LIBRARIES = ('safetensors',)

_KEY = 'cbkd_jax'  # in the header's metadata, whose values are strings


def write(deployed: Deployed, path: Path) -> None:
  """Writes a network.

  Args:
    deployed: the network. Arrays are named by their place,
      'params/block_0/stem/conv/kernel', in the layout of Flax: kernels as
      [height, width, inputs, outputs].
    path: the file.
  """
  arrays = traverse_util.flatten_dict(deployed.arrays, sep='/')
  description = {
    'model': deployed.model,
    'normalised': deployed.normalised,
    'norms': deployed.norms,
  }
  content = save(
    {name: np.ascontiguousarray(array) for name, array in arrays.items()},
    metadata={'format': 'flax', _KEY: json.dumps(description)},
  )
  path.write_bytes(content)  # the library's own files are closed to others


def read(path: Path) -> Deployed:
  """The network of a file, from nothing but the file.

  Raises:
    UserError: it can't be read, or is not one of ours.
  """
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f'{path}: cannot be read as a safetensors file, is it damaged? {error}'
    ) from None
  if _KEY not in metadata:
    raise UserError(
      f'{path}: its header does not say what network it is; cbkd_jax.export '
      'writes such files'
    )
  description = json.loads(metadata[_KEY])
  norms = description['norms']
  return deployed_.of_arrays(
    description['model'],
    traverse_util.unflatten_dict(arrays, sep='/'),
    normalise=description['normalised'],
    norms=None if norms is None else tuple(map(Norm.from_json, norms)),
  )


def load(
  path: Path, info: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's function from images to logits; compiled per batch size."""
  del info  # The header says it.
  found = read(path)
  run = jax.jit(found.function)
  arrays = jax.device_put(found.arrays)
  return lambda images: np.asarray(run(arrays, images))
