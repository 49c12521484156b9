"""How ONNX says what JAX's operations do, as far as networks here use them."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cbkd_jax.formats.onnx_graph import Graph, Tensor, usual_order

# (graph, the operation's parameters, output's shape and type, inputs) -> output
Rule = Callable[..., Tensor]


def _elementwise(op: str) -> Rule:
  def rule(graph: Graph, params: Any, out: Any, *inputs: Tensor) -> Tensor:
    del params
    return elementwise(graph, op, out.shape, *inputs)

  return rule


def elementwise(
  graph: Graph, op: str, shape: Sequence[Any], *inputs: Tensor
) -> Tensor:
  """A node whose inputs are broadcast to one another.

  Args:
    graph: the graph.
    op: the node's.
    shape: the output's.
    *inputs: of the same rank as the output, or scalars.
  """
  order = _common_order(len(shape), inputs)
  # Axes that no input has: the output does without them, too.
  gone = frozenset(order).intersection(
    *(_without(x) for x in inputs if x.shape)
  )
  left = [a for a in order if a not in gone]
  found = [graph.broadcast(x, left if x.shape else ()) for x in inputs]
  lacking = min(n if x.shape else len(left) for x, (_, n) in zip(inputs, found))
  full = frozenset().union(*(x.full for x in inputs))
  return Tensor(
    tuple(shape),
    order,
    graph.add(op, [name for name, _ in found]),
    absent=gone | frozenset(left[:lacking]),
    thin=frozenset(a for a, n in enumerate(shape) if n != 1 and a not in full),
  )


def _without(x: Tensor) -> frozenset[int]:
  """The axes that a tensor can do without."""
  if x.array is None:
    return x.absent
  return frozenset(a for a, n in enumerate(x.array.shape) if n == 1)


def _common_order(rank: int, inputs: Sequence[Tensor]) -> tuple[int, ...]:
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


def _same(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del graph, params, out
  return x


def _square(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  return elementwise(graph, 'Mul', out.shape, x, x)


def _integer_pow(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  if params['y'] == 2:
    return _square(graph, params, out, x)
  exponent = _scalar(params['y'], out.dtype)
  return elementwise(graph, 'Pow', out.shape, x, exponent)


def _rsqrt(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  root = elementwise(graph, 'Sqrt', out.shape, x)
  return elementwise(graph, 'Reciprocal', out.shape, root)


def _erfc(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  erf = elementwise(graph, 'Erf', out.shape, x)
  return elementwise(graph, 'Sub', out.shape, _scalar(1, out.dtype), erf)


def _max(graph: Graph, params: Any, out: Any, *inputs: Tensor) -> Tensor:
  for x, other in (inputs, inputs[::-1]):
    if other.array is not None and np.all(other.array == -np.inf):
      return x
  return elementwise(graph, 'Max', out.shape, *inputs)


def _scalar(value: float, dtype: Any) -> Tensor:
  return Tensor((), (), 'scalar', np.asarray(value, dtype))


def _cast(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  if x.array is not None:
    return dataclasses.replace(x, array=x.array.astype(out.dtype))
  name = graph.add('Cast', [x.name], to=np.dtype(out.dtype))
  return dataclasses.replace(x, name=name)


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
  order = _common_order(rank, inputs)
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
  names.append(graph.broadcast(value, ())[0])
  return Tensor(out.shape, x.order, graph.add('Pad', names, mode='constant'))


def _reduce(op: str) -> Rule:
  def rule(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
    axes = {int(a) for a in params['axes']}
    if axes & x.thin:
      x = graph.plain(x)
    # Counted from the last axis, so that a graph shows which is the last.
    rank = len(x.stored)
    places = [i - rank for i, a in enumerate(x.stored) if a in axes]
    size = math.prod(x.shape[a] for a in axes)
    if places:
      name = graph.add(
        op,
        [x.name, graph.integers(places)],
        reduced=size if isinstance(size, int) else None,
        keepdims=0,
      )
      x = dataclasses.replace(x, name=name, absent=x.absent | axes)
    return without(graph, x, axes, out.shape)

  return rule


def _window(
  params: Any, x: Tensor
) -> tuple[tuple[int, ...], dict[str, list[int]]]:
  """The order of axes that a pooling node wants, and what it has to say."""
  window, strides = params['window_dimensions'], params['window_strides']
  padding = params['padding']
  dilation = params.get('window_dilation') or (1,) * len(window)
  plain = set(params.get('base_dilation') or (1,)) == {1}
  moving = [
    a
    for a in range(len(window))
    if (window[a], strides[a], padding[a]) != (1, 1, (0, 0))
  ]
  others = [a for a in range(len(window)) if a not in moving]
  # Pooling in fewer directions than there are is pooling by windows of 1.
  while len(others) > 2:
    moving.append(others.pop(1))
  moving.sort()
  if len(others) < 2 or not plain:
    raise NotImplementedError('a window over examples or channels')
  return (*others, *moving), {
    'kernel_shape': [window[a] for a in moving],
    'strides': [strides[a] for a in moving],
    'pads': [padding[a][side] for side in (0, 1) for a in moving],
    'dilations': [dilation[a] for a in moving],
  }


def _max_pool(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  order, attributes = _window(params, x)
  name = graph.add('MaxPool', [graph.whole(x, order)], **attributes)
  return Tensor(out.shape, order, name)


def _sum_pool(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  order, attributes = _window(params, x)
  if set(attributes.pop('dilations')) != {1}:
    raise NotImplementedError('a sum over a window with gaps')
  name = graph.add(
    'AveragePool', [graph.whole(x, order)], count_include_pad=1, **attributes
  )
  size = _scalar(math.prod(attributes['kernel_shape']), out.dtype)
  return elementwise(
    graph, 'Mul', out.shape, Tensor(out.shape, order, name), size
  )


def _convolution(
  graph: Graph, params: Any, out: Any, x: Tensor, kernel: Tensor
) -> Tensor:
  numbers = params['dimension_numbers']
  padding = params['padding']
  if (
    set(params['lhs_dilation']) != {1}
    or params['batch_group_count'] != 1
    or min(n for pair in padding for n in pair) < 0
  ):
    raise NotImplementedError('a transposed convolution')
  name = graph.add(
    'Conv',
    [graph.whole(x, numbers.lhs_spec), graph.whole(kernel, numbers.rhs_spec)],
    kernel_shape=[kernel.shape[a] for a in numbers.rhs_spec[2:]],
    strides=list(params['window_strides']),
    pads=[pair[side] for side in (0, 1) for pair in padding],
    dilations=list(params['rhs_dilation']),
    group=params['feature_group_count'],
  )
  return Tensor(out.shape, tuple(numbers.out_spec), name)


def _dot_general(
  graph: Graph, params: Any, out: Any, left: Tensor, right: Tensor
) -> Tensor:
  (contracted, batch) = params['dimension_numbers']
  if len(contracted[0]) != 1:
    raise NotImplementedError('a product over several axes at once')
  if right.array is not None and not batch[0] and len(right.shape) == 2:
    return _dense(graph, out, left, right, contracted[0][0], contracted[1][0])
  return _product(graph, out, (left, right), contracted, batch)


def _dense(
  graph: Graph, out: Any, x: Tensor, kernel: Tensor, axis: int, inner: int
) -> Tensor:
  """A product with a constant matrix, over one axis of `x`."""
  rank, outputs = len(x.shape), 1 - inner
  # JAX puts the new axis last.
  places = {a: i for i, a in enumerate(b for b in range(rank) if b != axis)}
  places[axis] = rank - 1
  if rank == 4 and x.order[1] == axis and not x.absent:
    # Among images: a convolution by one pixel.
    images, weights = graph.whole(x, x.order), kernel.array
    weights = weights.transpose(outputs, inner)[:, :, None, None]
    name = graph.add(
      'Conv',
      [images, graph.constant(weights, kernel.name)],
      kernel_shape=[1, 1],
      strides=[1, 1],
      pads=[0] * 4,
      dilations=[1, 1],
      group=1,
    )
    return Tensor(out.shape, tuple(places[a] for a in x.order), name)
  order = [a for a in x.order if a != axis] + [axis]
  names = [graph.whole(x, order), graph.whole(kernel, (inner, outputs))]
  name = graph.add('Gemm' if rank == 2 else 'MatMul', names)
  return Tensor(out.shape, tuple(places[a] for a in order), name)


def _product(
  graph: Graph,
  out: Any,
  factors: tuple[Tensor, Tensor],
  contracted: Any,
  batch: Any,
) -> Tensor:
  """A product of two tensors, with axes that both have."""
  free = [
    [
      a
      for a in range(len(x.shape))
      if a not in shared and a not in summed and x.shape[a] != 1
    ]
    for x, shared, summed in zip(factors, batch, contracted)
  ]
  if max(map(len, free)) > 1:
    raise NotImplementedError('a product with several axes of each factor')

  def orders(first: int) -> list[list[int]]:
    second = 1 - first
    return [
      [*batch[first], *free[first], *contracted[first]],
      [*batch[second], *contracted[second], *free[second]],
    ]

  def cost(first: int) -> int:
    pair = (factors[first], factors[1 - first])
    return sum(
      [a for a in x.stored if a in order] != order
      for x, order in zip(pair, orders(first))
    )

  # Either factor may be the first: the product only comes out transposed.
  first = min((0, 1), key=cost)
  second = 1 - first
  name = graph.add(
    'MatMul',
    [
      graph.whole(factors[i], order)
      for i, order in zip((first, second), orders(first))
    ],
  )
  # JAX's axes: the shared ones, the left factor's own, the right one's own.
  rank, place = len(out.shape), {}
  axes = list(range(len(batch[0])))
  count = len(batch[0])
  for i, x in enumerate(factors):
    for a in range(len(x.shape)):
      if a not in batch[i] and a not in contracted[i]:
        place[i, a] = count
        count += 1
  axes += [place[i, a] for i in (first, second) for a in free[i]]
  absent = frozenset(range(rank)) - set(axes)
  return Tensor(out.shape, usual_order(axes, rank), name, absent=absent)


RULES: dict[str, Rule] = {
  'add': _elementwise('Add'),
  'sub': _elementwise('Sub'),
  'mul': _elementwise('Mul'),
  'div': _elementwise('Div'),
  'max': _max,
  'min': _elementwise('Min'),
  'neg': _elementwise('Neg'),
  'abs': _elementwise('Abs'),
  'exp': _elementwise('Exp'),
  'log': _elementwise('Log'),
  'sqrt': _elementwise('Sqrt'),
  'tanh': _elementwise('Tanh'),
  'logistic': _elementwise('Sigmoid'),
  'erf': _elementwise('Erf'),
  'erfc': _erfc,
  'rsqrt': _rsqrt,
  'square': _square,
  'integer_pow': _integer_pow,
  'convert_element_type': _cast,
  'copy': _same,
  'copy_p': _same,
  'name': _same,
  'optimization_barrier': _same,
  'stop_gradient': _same,
  'transpose': _transpose,
  'reshape': _reshape,
  'squeeze': _squeeze,
  'broadcast_in_dim': _broadcast_in_dim,
  'concatenate': _concatenate,
  'slice': _slice,
  'gather': _gather,
  'pad': _pad,
  'reduce_sum': _reduce('ReduceSum'),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_window_max': _max_pool,
  'reduce_window_sum': _sum_pool,
  'conv_general_dilated': _convolution,
  'dot_general': _dot_general,
}

# Those that compute nothing: of a constant they make another one.
WORDS = frozenset(
  {
    'broadcast_in_dim',
    'convert_element_type',
    'copy',
    'copy_p',
    'name',
    'reshape',
    'squeeze',
    'stop_gradient',
    'transpose',
  }
)
