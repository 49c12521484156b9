"""Which tensor of a PyTorch network is which array of ours."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import models, trees
from cbkd_jax.blocks import Architecture, Variables
from cbkd_jax.errors import UserError, nearest

# Those whose names a network of ImageNet has.
_IMAGENET = {'torchvision', 'timm'}

# Our last names to torch's; all others are the same in both.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'mean': 'running_mean',
  'var': 'running_var',
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array, under both names.

  Attributes:
    part: index of the network's part, the head's the last.
    name: ours, 'block_0/stem/conv/kernel'.
    shape: ours.
    torch_name: the other, 'conv1.weight'.
    torch_shape: the other.
  """

  part: int
  name: str
  shape: tuple[int, ...]
  torch_name: str
  torch_shape: tuple[int, ...]


def namings(architecture: Architecture, model: str) -> tuple[str, ...]:
  """Whose names the architecture knows.

  Args:
    architecture: the network's.
    model: its name, for the message.

  Raises:
    UserError: it knows none.
  """
  if not architecture.torch_names:
    raise UserError(
      f"model '{model}' knows no names of PyTorch's; see torch_names in "
      'cbkd_jax/blocks.py'
    )
  return tuple(architecture.torch_names)


def default_image_shape(model: str) -> tuple[int, int, int]:
  """(height, width, channels): 32x32x3, of a network of ImageNet 224x224x3.

  Raises:
    UserError: the model is not known.
  """
  shape = (224, 224, 3)
  names = models.build(model, 1, shape).torch_names or {}
  return shape if _IMAGENET & {*names} else (32, 32, 3)


def check(naming: str, known: Sequence[str]) -> None:
  """Refuses a naming that the architecture does not know.

  Raises:
    UserError: naming the known ones.
  """
  if naming not in known:
    raise UserError(
      f'--names={naming}: must be one of {", ".join(known)}'
      f'{nearest(naming, known)}'
    )


def entries(
  architecture: Architecture, shapes: Variables, naming: str
) -> tuple[Entry, ...]:
  """All arrays of a network, in the order of `jax.tree.leaves(shapes)`.

  Args:
    architecture: the network's.
    shapes: of its variables.
    naming: one of `namings`.
  """
  torch_name = architecture.torch_names[naming]
  parts = trees.part_names(len(shapes.params) - 1)
  found = []
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    part = path[1].idx
    *layer, last = (key.key for key in path[2:])
    module = torch_name(part, '/'.join(layer))
    theirs = _LEAVES.get(last, last)
    found.append(
      Entry(
        part=part,
        name='/'.join([parts[part], *layer, last]),
        shape=tuple(leaf.shape),
        torch_name=f'{module}.{theirs}' if module else theirs,
        torch_shape=_torch_shape(last, tuple(leaf.shape)),
      )
    )
  return tuple(found)


def _torch_shape(last: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  return to_torch(last, np.broadcast_to(np.float32(0), shape)).shape


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """An array of ours in torch's layout.

  Kernels [(height, width,) in, out] become (out, in(, height, width)).

  Args:
    name: ours; its last part decides.
    array: any shape.
  """
  if name.rpartition('/')[2] != 'kernel' or array.ndim < 2:
    return array
  return np.moveaxis(array, (-1, -2), (0, 1))


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
  """The way back of `to_torch`."""
  if name.rpartition('/')[2] != 'kernel' or array.ndim < 2:
    return array
  return np.moveaxis(array, (0, 1), (-1, -2))


def to_state_dict(
  found: Sequence[Entry],
  variables: Variables,
  dtypes: Mapping[str, str] | None = None,
) -> dict[str, np.ndarray]:
  """A network as a state dict.

  Args:
    found: the network's `entries`.
    variables: its variables.
    dtypes: torch's names of arrays that are not to be float32.

  Returns:
    Arrays in torch's layout, by torch's names; without 'num_batches_tracked'.
  """
  dtypes = dtypes or {}
  leaves = jax.tree.leaves(variables)
  return {
    entry.torch_name: to_torch(entry.name, np.asarray(leaf)).astype(
      jnp.dtype(dtypes.get(entry.torch_name, 'float32'))
    )
    for entry, leaf in zip(found, leaves, strict=True)
  }
