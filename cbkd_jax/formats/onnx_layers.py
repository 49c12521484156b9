"""How ONNX says what JAX computes over many numbers: layers, pooling, sums.

Rules as in `onnx_elementwise`.
"""

import dataclasses
import math
from typing import Any

from cbkd_jax.formats.onnx_axes import without
from cbkd_jax.formats.onnx_elementwise import Rule, elementwise, scalar
from cbkd_jax.formats.onnx_graph import Graph, Tensor, usual_order


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
  params: Any,
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
  order, attributes = _window(params)
  name = graph.add('MaxPool', [graph.whole(x, order)], **attributes)
  return Tensor(out.shape, order, name)


def _sum_pool(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  order, attributes = _window(params)
  if set(attributes.pop('dilations')) != {1}:
    raise NotImplementedError('a sum over a window with gaps')
  name = graph.add(
    'AveragePool', [graph.whole(x, order)], count_include_pad=1, **attributes
  )
  size = scalar(math.prod(attributes['kernel_shape']), out.dtype)
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
  for own, x, shared, summed in zip(free, factors, batch, contracted):
    if not own:  # one of size 1, so that each factor is a matrix
      own += [a for a in range(len(x.shape)) if a not in (*shared, *summed)][:1]
  if set(map(len, free)) != {1}:
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
  'reduce_sum': _reduce('ReduceSum'),
  'reduce_max': _reduce('ReduceMax'),
  'reduce_min': _reduce('ReduceMin'),
  'reduce_window_max': _max_pool,
  'reduce_window_sum': _sum_pool,
  'conv_general_dilated': _convolution,
  'dot_general': _dot_general,
}
