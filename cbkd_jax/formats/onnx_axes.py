"""How ONNX says what JAX does to axes: mostly, not at all.

Rules as in `onnx_elementwise`. Transposing, and adding or taking away an axis
of size 1, only changes what a tensor says of its axes.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from cbkd_jax.formats.onnx_elementwise import Rule
from cbkd_jax.formats.onnx_graph import (
  Graph,
  Tensor,
  common_order,
  usual_order,
)


def _transpose(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del graph
  permutation = [int(a) for a in params['permutation']]
  if x.array is not None:
    x = dataclasses.replace(x, array=x.array.transpose(permutation))
    thin = (permutation.index(a) for a in x.thin)
    return dataclasses.replace(x, shape=out.shape, thin=frozenset(thin))
  return _renamed(x, out.shape, {a: i for i, a in enumerate(permutation)})


def _renamed(x: Tensor, shape: Sequence[Any], places: dict[int, int]) -> Tensor:
  """The tensor with its axes called by other numbers; new ones are absent."""
  order = usual_order([places[a] for a in x.order if a in places], len(shape))
  if x.array is not None:
    sizes = [1] * len(shape)
    for axis, place in places.items():
      sizes[place] = x.array.shape[axis]
    array, order = x.array.reshape(sizes), tuple(range(len(shape)))
  else:
    array = None
  new = frozenset(range(len(shape))) - set(places.values())
  absent = frozenset(places[a] for a in x.absent if a in places) | new
  thin = frozenset(places[a] for a in x.thin if a in places)
  return Tensor(
    tuple(shape),
    order,
    x.name,
    array,
    absent if array is None else frozenset(),
    thin | {a for a in new if shape[a] != 1},
  )


def _broadcast_in_dim(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del graph
  places = {i: int(a) for i, a in enumerate(params['broadcast_dimensions'])}
  found = _renamed(x, out.shape, places)
  repeated = {
    a for i, a in places.items() if x.shape[i] == 1 and out.shape[a] != 1
  }
  return dataclasses.replace(found, thin=found.thin | repeated)


def _squeeze(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  return without(graph, x, {int(a) for a in params['dimensions']}, out.shape)


def without(
  graph: Graph, x: Tensor, axes: set[int], shape: Sequence[Any]
) -> Tensor:
  """The tensor without axes of size 1, the others counted anew."""
  x = graph.without(x, axes & set(x.stored))
  left = [a for a in range(len(x.shape)) if a not in axes]
  return _renamed(x, shape, {a: i for i, a in enumerate(left)})


def _reshape(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  shape = tuple(out.shape)
  if x.array is not None and not x.thin:
    array = x.array.reshape(shape)
    return Tensor(shape, tuple(range(len(shape))), x.name, array)
  groups = _groups(x.shape, shape)
  x = graph.without(
    x, {a for a, n in enumerate(x.shape) if n == 1} & set(x.stored)
  )
  if all(len(a) == len(b) == 1 for a, b in groups):
    return _renamed(x, shape, {a[0]: b[0] for a, b in groups})
  # A group's axes side by side, where the first of them is; what are no images
  # any more, but tokens, in JAX's order.
  group_of = {a: group for group in groups for a in group[0]}
  before, after = [], []
  for axis in x.order if len(shape) > 3 else range(len(x.shape)):
    if axis in group_of and axis not in before:
      before += group_of[axis][0]
      after += group_of[axis][1]
  sizes = [shape[a] if isinstance(shape[a], int) else -1 for a in after]
  name = graph.add('Reshape', [graph.whole(x, before), graph.integers(sizes)])
  absent = frozenset(range(len(shape))) - set(after)
  return Tensor(shape, usual_order(after, len(shape)), name, absent=absent)


def _groups(
  shape: Sequence[Any], new: Sequence[Any]
) -> list[tuple[list[int], list[int]]]:
  """Which axes become which, those of size 1 left out.

  Args:
    shape: before reshaping.
    new: after it.

  Returns:
    Axes before and after, of the same product, as few as can be together.
  """
  before = [a for a, n in enumerate(shape) if n != 1]
  after = [a for a, n in enumerate(new) if n != 1]
  groups = []
  while before:
    own, theirs = [before.pop(0)], [after.pop(0)]
    size, other = shape[own[0]], new[theirs[0]]
    while size != other:
      if size < other:
        own.append(before.pop(0))
        size = size * shape[own[-1]]
      else:
        theirs.append(after.pop(0))
        other = other * new[theirs[-1]]
    groups.append((own, theirs))
  return groups


def _concatenate(
  graph: Graph, params: Any, out: Any, *inputs: Tensor
) -> Tensor:
  rank = len(out.shape)
  order = common_order(rank, inputs)
  names = [graph.whole(x, order) for x in inputs]
  axis = order.index(params['dimension'])
  return Tensor(out.shape, order, graph.add('Concat', names, axis=axis))


def _slice(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  starts, limits = params['start_indices'], params['limit_indices']
  strides = params['strides'] or (1,) * len(starts)
  cuts = {
    a: (starts[a], limits[a], strides[a])
    for a, n in enumerate(x.shape)
    if (starts[a], limits[a], strides[a]) != (0, n, 1)
  }
  return _cut(graph, x, cuts, out.shape)


def _cut(
  graph: Graph,
  x: Tensor,
  cuts: dict[int, tuple[int, int, int]],
  shape: Sequence[Any],
) -> Tensor:
  """A range (start, limit, stride) of some axes."""
  if not cuts:
    return x
  x = graph.plain(x)
  columns = zip(*cuts.values())
  starts, limits, strides = (graph.integers(column) for column in columns)
  axes = graph.integers([x.order.index(a) for a in cuts])
  name = graph.add('Slice', [x.name, starts, limits, axes, strides])
  return Tensor(tuple(shape), x.order, name)


def split(
  graph: Graph, params: Any, shapes: Sequence[Sequence[Any]], x: Tensor
) -> list[Tensor]:
  """The parts of an axis: the one operation here of several outputs."""
  axis, found, start = params['axis'], [], 0
  for size, shape in zip(params['sizes'], shapes):
    cuts = {axis: (start, start + size, 1)}
    found.append(_cut(graph, x, cuts, shape))
    start += size
  return found


def _gather(
  graph: Graph, params: Any, out: Any, x: Tensor, indices: Tensor
) -> Tensor:
  """A slice at a constant place, as which indexing is traced."""
  numbers = params['dimension_numbers']
  starts, sizes = indices.array, params['slice_sizes']
  if (
    starts is None
    or starts.shape != (len(numbers.start_index_map),)
    or numbers.operand_batching_dims
  ):
    raise NotImplementedError('gather at places that are not constant')
  at = {a: int(n) for a, n in zip(numbers.start_index_map, starts)}
  cuts = {
    a: (at.get(a, 0), at.get(a, 0) + sizes[a], 1)
    for a, n in enumerate(x.shape)
    if sizes[a] != n
  }
  found = _cut(graph, x, cuts, sizes)
  return without(graph, found, set(numbers.collapsed_slice_dims), out.shape)


def _pad(
  graph: Graph, params: Any, out: Any, x: Tensor, value: Tensor
) -> Tensor:
  low, high, inner = zip(*params['padding_config'])
  if min(*low, *high) < 0 or any(inner):
    raise NotImplementedError('pad with negative or inner padding')
  pads = [side[a] for side in (low, high) for a in x.order]
  names = [graph.plain(x).name, graph.integers(pads)]
  names.append(graph.broadcast(value, ()))
  return Tensor(out.shape, x.order, graph.add('Pad', names, mode='constant'))


RULES: dict[str, Rule] = {
  'transpose': _transpose,
  'reshape': _reshape,
  'squeeze': _squeeze,
  'broadcast_in_dim': _broadcast_in_dim,
  'concatenate': _concatenate,
  'slice': _slice,
  'gather': _gather,
  'pad': _pad,
}
