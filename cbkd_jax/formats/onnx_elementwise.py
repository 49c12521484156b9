"""How ONNX says what JAX computes number by number.

A rule writes one operation of JAX: (graph, the operation's parameters, shape
and type of the output, inputs) -> output.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cbkd_jax.formats.onnx_graph import Graph, Tensor, common_order

Rule = Callable[..., Tensor]


def _plain(op: str) -> Rule:
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
  order = common_order(len(shape), inputs)
  # Axes that no input has: the output does without them, too.
  gone = frozenset(order).intersection(
    *(_without(x) for x in inputs if x.shape)
  )
  left = [a for a in order if a not in gone]
  names = [graph.broadcast(x, left if x.shape else ()) for x in inputs]
  full = frozenset().union(*(x.full for x in inputs))
  return Tensor(
    tuple(shape),
    order,
    graph.add(op, names),
    absent=gone,
    thin=frozenset(a for a, n in enumerate(shape) if n != 1 and a not in full),
  )


def _without(x: Tensor) -> frozenset[int]:
  """The axes that a tensor can do without."""
  if x.array is None:
    return x.absent
  return frozenset(a for a, n in enumerate(x.array.shape) if n == 1)


def _same(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del graph, params, out
  return x


def _square(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  return elementwise(graph, 'Mul', out.shape, x, x)


def _integer_pow(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  if params['y'] == 2:
    return _square(graph, params, out, x)
  exponent = scalar(params['y'], out.dtype)
  return elementwise(graph, 'Pow', out.shape, x, exponent)


def _rsqrt(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  root = elementwise(graph, 'Sqrt', out.shape, x)
  return elementwise(graph, 'Reciprocal', out.shape, root)


def _erfc(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  erf = elementwise(graph, 'Erf', out.shape, x)
  return elementwise(graph, 'Sub', out.shape, scalar(1, out.dtype), erf)


def _max(graph: Graph, params: Any, out: Any, *inputs: Tensor) -> Tensor:
  for x, other in (inputs, inputs[::-1]):
    if other.array is not None and np.all(other.array == -np.inf):
      return x
  return elementwise(graph, 'Max', out.shape, *inputs)


def scalar(value: float, dtype: Any) -> Tensor:
  return Tensor((), (), 'scalar', np.asarray(value, dtype))


def _cast(graph: Graph, params: Any, out: Any, x: Tensor) -> Tensor:
  del params
  if x.array is not None:
    return dataclasses.replace(x, array=x.array.astype(out.dtype))
  name = graph.add('Cast', [x.name], to=np.dtype(out.dtype))
  return dataclasses.replace(x, name=name)


def _select(
  graph: Graph, params: Any, out: Any, which: Tensor, *cases: Tensor
) -> Tensor:
  del params
  if len(cases) != 2 or which.shape != out.shape:
    raise NotImplementedError('a choice other than of two arrays')
  return elementwise(graph, 'Where', out.shape, which, *cases[::-1])


RULES: dict[str, Rule] = {
  'add': _plain('Add'),
  'sub': _plain('Sub'),
  'mul': _plain('Mul'),
  'div': _plain('Div'),
  'max': _max,
  'min': _plain('Min'),
  'pow': _plain('Pow'),
  'neg': _plain('Neg'),
  'abs': _plain('Abs'),
  'exp': _plain('Exp'),
  'log': _plain('Log'),
  'sqrt': _plain('Sqrt'),
  'tanh': _plain('Tanh'),
  'logistic': _plain('Sigmoid'),
  'erf': _plain('Erf'),
  'erfc': _erfc,
  'rsqrt': _rsqrt,
  'square': _square,
  'integer_pow': _integer_pow,
  'gt': _plain('Greater'),
  'ge': _plain('GreaterOrEqual'),
  'lt': _plain('Less'),
  'le': _plain('LessOrEqual'),
  'select_n': _select,
  'convert_element_type': _cast,
  'copy': _same,
  'name': _same,
  'stop_gradient': _same,
}
