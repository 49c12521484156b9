"""StableHLO, as `jax.export` writes it: for JAX on CPUs, NVIDIA GPUs and TPUs.

The file holds the program and its arrays; it needs none of this package.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export

from cbkd_jax.deployed import Deployed

SUFFIX = '.stablehlo'
LIBRARIES = ('flatbuffers',)

_PLATFORMS = ('cpu', 'cuda', 'tpu')


def write(deployed: Deployed, path: Path) -> None:
  """Writes a network.

  Args:
    deployed: the network; any number of images may be given to the file's.
    path: the file.
  """
  sides = ', '.join(map(str, deployed.image_shape))
  images = jax.ShapeDtypeStruct(
    export.symbolic_shape(f'batch, {sides}'), deployed.input_dtype
  )

  # The name says what the program is.
  def logits(images: jax.Array) -> jax.Array:
    return deployed.function(deployed.arrays, images)

  with _no_source_paths():
    exported = export.export(jax.jit(logits), platforms=_PLATFORMS)(images)
  path.write_bytes(exported.serialize())


@contextlib.contextmanager
def _no_source_paths() -> Iterator[None]:
  """What is lowered doesn't name the Python files that it came from.

  Their directories are nobody's business, and would make another file of the
  same network elsewhere.
  """
  name = 'jax_traceback_in_locations_limit'
  before = getattr(jax.config, name)
  jax.config.update(name, 0)
  try:
    yield
  finally:
    jax.config.update(name, before)


def load(
  path: Path, info: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's function from images to logits; compiled per batch size."""
  del info  # The file needs none of it.
  call = jax.jit(export.deserialize(bytearray(path.read_bytes())).call)
  return lambda images: np.asarray(call(images))
