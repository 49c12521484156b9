"""An ONNX graph while it is written: its nodes, and in which order axes are.

JAX's images are `[batch, height, width, channels]`, ONNX's convolutions want
`[batch, channels, height, width]`. So every tensor says in which order the
graph has its axes. Transposing is then a matter of words, and a `Transpose` is
written only where a node really needs another order.
"""

import dataclasses
import hashlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

# The order in which convolutions have the axes of images.
IMAGES = (0, 3, 1, 2)


@dataclasses.dataclass(frozen=True, eq=False)
class Tensor:
  """A value of the JAX program, as the graph has it.

  Attributes:
    shape: JAX's; the batch may be a symbol of `jax.export`.
    order: JAX's axes in the graph's order; a constant's are as in JAX.
    name: in the graph; of a constant, what to call it.
    array: of a constant.
    absent: axes that the graph's tensor does not have; of size 1 or in `thin`.
    thin: axes that are repeated in JAX's and of size 1 in the graph's.
  """

  shape: tuple[Any, ...]
  order: tuple[int, ...]
  name: str
  array: np.ndarray | None = None
  absent: frozenset[int] = frozenset()
  thin: frozenset[int] = frozenset()

  @property
  def stored(self) -> tuple[int, ...]:
    """The axes that the graph's tensor has, in its order."""
    return tuple(a for a in self.order if a not in self.absent)

  @property
  def full(self) -> frozenset[int]:
    """The axes whose size is not 1 in the graph."""
    return frozenset(
      a for a, n in enumerate(self.shape) if n != 1 and a not in self.thin
    )


@dataclasses.dataclass
class Node:
  """A node with one output; `reduced` is over how many numbers it sums."""

  op: str
  inputs: list[str]
  output: str
  attributes: dict[str, Any]
  reduced: int | None = None


class Graph:
  """Nodes in the order of computing, and constants by name."""

  def __init__(self, images: str) -> None:
    self.images = images
    self.nodes: list[Node] = []
    self.constants: dict[str, np.ndarray] = {}
    self._same: dict[Any, str] = {}
    self._names: set[str] = {images}
    self._labels: dict[str, str] = {}  # of constants

  def add(
    self,
    op: str,
    inputs: Sequence[str],
    reduced: int | None = None,
    **attributes: Any,
  ) -> str:
    """The name of the output of a node, an equal one that is there if any."""
    key = (op, tuple(inputs), repr(sorted(attributes.items())))
    if key not in self._same:
      output = self._unused(op)
      self.nodes.append(Node(op, list(inputs), output, attributes, reduced))
      self._same[key] = output
    return self._same[key]

  def constant(self, array: Any, name: str = 'constant') -> str:
    """The name of a constant, an equal one that is there if any."""
    array = np.asarray(array)
    array = np.ascontiguousarray(array).reshape(array.shape)
    digest = hashlib.sha256(array.tobytes()).digest()
    key = (array.dtype.str, array.shape, digest)
    if key not in self._same:
      self._same[key] = self._unused(name)
      self.constants[self._same[key]] = array
      self._labels[self._same[key]] = name
    return self._same[key]

  def integers(self, values: Sequence[int]) -> str:
    """The name of a constant vector of integers."""
    return self.constant(np.asarray(values, np.int64), 'integers')

  def broadcast(self, tensor: Tensor, order: Sequence[int]) -> str:
    """The name of the tensor in an order of axes, as ONNX broadcasts it.

    Args:
      tensor: the tensor.
      order: axes; those left out are of size 1 or repeated.
    """
    if tensor.array is not None:
      array = _arranged(tensor.array, order)
      while array.ndim and array.shape[0] == 1:
        array = array[0]
      return self.constant(array, tensor.name)
    name = self._sorted(self._only(tensor, order), order)
    missing = [i for i, axis in enumerate(order) if axis in tensor.absent]
    if missing == list(range(len(missing))):
      return name  # those in front are added by broadcasting
    return self._unsqueeze(name, missing, len(order))

  def plain(self, tensor: Tensor) -> Tensor:
    """The tensor with all its axes in the graph, at their full sizes."""
    name = self.whole(tensor, tensor.order)
    return Tensor(tensor.shape, tensor.order, name)

  def whole(self, tensor: Tensor, order: Sequence[int]) -> str:
    """The name of the tensor with the given axes in the given order.

    Args:
      tensor: the tensor.
      order: axes; those left out are of size 1 or repeated.
    """
    thin = [axis for axis in order if axis in tensor.thin]
    if tensor.array is not None:
      name = self.constant(_arranged(tensor.array, order), tensor.name)
    else:
      tensor = self._only(tensor, order)
      name = self._sorted(tensor, order)
      missing = [i for i, axis in enumerate(order) if axis in tensor.absent]
      if missing:
        name = self._unsqueeze(name, missing, len(order))
    if thin:
      sizes = [tensor.shape[a] if a in thin else 1 for a in order]
      name = self.add('Expand', [name, self.sizes(sizes)])
    return name

  def without(self, tensor: Tensor, axes: Collection[int]) -> Tensor:
    """The tensor without axes, which are of size 1, in the graph."""
    if tensor.array is not None or not axes:
      return tensor
    places = [i for i, axis in enumerate(tensor.stored) if axis in axes]
    name = self.add('Squeeze', [tensor.name, self.integers(places)])
    return dataclasses.replace(
      tensor, name=name, absent=tensor.absent | frozenset(axes)
    )

  def sizes(self, sizes: Sequence[Any]) -> str:
    """The name of a vector of sizes, of which some may be the batch's."""
    if all(isinstance(n, int) for n in sizes):
      return self.integers(sizes)
    batch = self.add('Shape', [self.images], start=0, end=1)
    parts = [self.integers([n]) if isinstance(n, int) else batch for n in sizes]
    return self.add('Concat', parts, axis=0)

  def _only(self, tensor: Tensor, axes: Collection[int]) -> Tensor:
    return self.without(tensor, set(tensor.stored) - set(axes))

  def _sorted(self, tensor: Tensor, order: Sequence[int]) -> str:
    """The tensor's stored axes in the order that `order` has them."""
    stored = tensor.stored
    places = [stored.index(axis) for axis in order if axis in stored]
    if places == sorted(places):
      return tensor.name
    return self.add('Transpose', [tensor.name], perm=places)

  def _unsqueeze(self, name: str, places: Sequence[int], rank: int) -> str:
    """A value with new axes, counted from the last: as reductions do."""
    axes = self.integers([place - rank for place in places])
    return self.add('Unsqueeze', [name, axes])

  def finish(self, result: str, output: str) -> None:
    """Leaves out what is not used, and names the rest after its layers.

    Args:
      result: the name of the graph's output.
      output: what it is to be called.
    """
    used, kept = {result}, []
    for node in reversed(self.nodes):
      if node.output in used:
        used.update(node.inputs)
        kept.append(node)
    self.nodes = kept[::-1]
    self._names = {self.images, output}
    names = {self.images: self.images}
    for name in self.constants:
      if name in used:
        names[name] = self._unused(self._labels[name])
    for node in self.nodes:
      layers = [
        names[x].rpartition('/')[0]
        for x in node.inputs
        if x in names and x in self.constants
      ]
      layer = next(filter(None, layers), '')
      names.setdefault(
        node.output, self._unused(f'{layer}/{node.op}'.strip('/'))
      )
    names[result] = output
    self.constants = {
      names[n]: array for n, array in self.constants.items() if n in used
    }
    for node in self.nodes:
      node.inputs = [names[x] for x in node.inputs]
      node.output = names[node.output]

  def _unused(self, name: str) -> str:
    found, number = name, 1
    while found in self._names:
      number += 1
      found = f'{name}_{number}'
    self._names.add(found)
    return found


def _arranged(array: np.ndarray, order: Sequence[int]) -> np.ndarray:
  """An array with some axes in an order; the others are of size 1."""
  others = [a for a in range(array.ndim) if a not in order]
  array = array.transpose([*others, *order])
  return array.reshape(array.shape[len(others) :])


def usual_order(order: Sequence[int], rank: int) -> tuple[int, ...]:
  """An order of all axes that has some of them in their present order.

  Args:
    order: some of the axes.
    rank: the number of all.
  """
  for usual in ((IMAGES,) if rank == 4 else ()) + (tuple(range(rank)),):
    if [a for a in usual if a in order] == list(order):
      return usual
  return (*order, *(a for a in range(rank) if a not in order))


def common_order(rank: int, inputs: Sequence[Tensor]) -> tuple[int, ...]:
  """The order that costs least: that of most axes, then the usual one."""
  natural = tuple(range(rank))
  found = [x for x in inputs if x.array is None and len(x.shape) == rank]
  if not found:
    return natural
  # Of two images the one that convolutions have written; of two others the one
  # that JAX has written.
  return max(
    found, key=lambda x: (len(x.full), (x.order == natural) != (rank == 4))
  ).order
