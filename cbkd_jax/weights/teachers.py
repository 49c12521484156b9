"""A network of ours out of a PyTorch state dict."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import blocks, models
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.weights import files, hints, matching, naming
from cbkd_jax.weights.files import Arrays
from cbkd_jax.weights.matching import Match


@dataclasses.dataclass(frozen=True)
class Request:
  """What a file is to be read as.

  Attributes:
    model: the network's name, see `models.build`.
    num_classes: of its logits.
    image_shape: (height, width, channels); None: see
      `naming.default_image_shape`.
    names: whose names the file has; None: those that most fit.
    entry: which of the file's entries is the state dict; None: the one that
      most fits.
    allow_missing: patterns of names, ours or torch's, of arrays that may be
      missing, unexpected or of another shape; ours are drawn at random then.
    seed: of what is drawn.
  """

  model: str
  num_classes: int
  image_shape: tuple[int, int, int] | None = None
  names: str | None = None
  entry: str | None = None
  allow_missing: Sequence[str] = ()
  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A network of a file.

  Attributes:
    variables: the network's, float32.
    description: plain values: what the network is and where it comes from.
  """

  variables: Variables
  description: Mapping[str, Any]


def bring(
  path: Path,
  request: Request,
  show: Callable[[Match, Mapping[str, str]], None] = lambda *_: None,
) -> Teacher:
  """Reads a network out of a file.

  Args:
    path: a `.safetensors`, `.pth` or `.pt` file.
    request: what it is to be read as.
    show: `(match, notes) -> None`, see `report.show`; is called once it is
      known how the file and the network match, be it enough or not.

  Returns:
    The teacher.

  Raises:
    UserError: the file can't be read or does not match the network.
  """
  model, classes = request.model, request.num_classes
  if request.image_shape is None:
    shape = naming.default_image_shape(model)
    request = dataclasses.replace(request, image_shape=shape)
  architecture = models.build(model, classes, request.image_shape)
  names = naming.namings(architecture, model)
  if request.names is not None:
    naming.check(request.names, names)
    names = (request.names,)
  state_dicts = _state_dicts(path, request.entry)
  network = architecture.network()
  shapes = blocks.shapes(network, request.image_shape)
  found = matching.best(state_dicts, architecture, shapes, names)
  try:
    matching.check_allowed(found, request.allow_missing)
  except matching.Unmatched as error:
    show(found, {})
    hint = hints.hint(found, state_dicts, model, classes, request.image_shape)
    raise UserError(
      f'{path}: does not match {model} with {classes} classes: {error}{hint}'
    ) from None
  drawn = [e.name for e in (*found.missing, *found.misshapen)]
  show(
    found,
    dict.fromkeys(found.unexpected, 'left out')
    | dict.fromkeys(drawn, f'drawn, seed {request.seed}'),
  )
  _check_values(path, found)
  return Teacher(
    _variables(found, network, shapes, request),
    {
      'model': model,
      'num_classes': classes,
      'image_shape': list(request.image_shape),
      'file': path.name,
      'sha256': _sha256(path),
      'names': found.naming,
      'dtypes': _dtypes(found),
      'drawn': drawn,
      'seed': request.seed,
    },
  )


def _state_dicts(path: Path, entry: str | None) -> dict[str, Arrays]:
  found = files.read(path)
  if entry is None:
    return found
  if entry not in found:
    raise UserError(
      f'--entry={entry}: {path} has {", ".join(map(repr, found))}'
    )
  return {entry: found[entry]}


def _check_values(path: Path, found: Match) -> None:
  """Refuses weights that are no numbers to compute with.

  Raises:
    UserError: naming the first array that is not floating or not finite.
  """
  for entry in found.matched:
    array = found.arrays[entry.torch_name]
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise UserError(
        f'{path}: {entry.torch_name} is of type {array.dtype.name}; must be '
        'floating-point numbers'
      )
    if not np.isfinite(array.astype(np.float32)).all():
      raise UserError(
        f'{path}: {entry.torch_name} holds infinite numbers or NaN'
      )


def _dtypes(found: Match) -> dict[str, str]:
  """The file's types by torch's name, where they are others than float32."""
  names = [entry.torch_name for entry in found.matched]
  return {
    name: found.arrays[name].dtype.name
    for name in names
    if found.arrays[name].dtype != np.float32
  }


def _variables(
  found: Match, network: Network, shapes: Variables, request: Request
) -> Variables:
  """The file's arrays in our layout; the others drawn."""
  fitting = {e.name for e in found.matched}
  parts = sorted({e.part for e in found.entries if e.name not in fitting})
  template = shapes
  if parts:
    rng = jax.random.key(request.seed)
    drawn = blocks.init(network, rng, request.image_shape, tuple(parts))
    template = Variables(
      *(
        tuple(d if i in parts else s for i, (d, s) in enumerate(zip(*trees)))
        for trees in zip(drawn, shapes)
      )
    )
  leaves, structure = jax.tree.flatten(template)
  arrays = [
    _from_torch(e, found) if e.name in fitting else np.asarray(leaf)
    for e, leaf in zip(found.entries, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, arrays)


def _from_torch(entry: naming.Entry, found: Match) -> np.ndarray:
  array = naming.from_torch(entry.name, found.arrays[entry.torch_name])
  return np.ascontiguousarray(array, np.float32).reshape(entry.shape)


def _sha256(path: Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
