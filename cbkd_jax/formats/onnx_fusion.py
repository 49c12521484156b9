"""What ONNX says in one node, of the several that JAX's operations become.

Each pass reads a graph of nodes with one output and writes a shorter one of
the same meaning.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np

from cbkd_jax.formats.onnx_graph import Graph, Node

_ALONE = ('Add', 'Mul', 'Sqrt', 'Reciprocal')


class _Reader:
  """Who makes and who uses what in a graph."""

  def __init__(self, graph: Graph, result: str) -> None:
    self.graph = graph
    self.makers = {node.output: node for node in graph.nodes}
    self.uses = Counter(x for node in graph.nodes for x in node.inputs)
    self.uses[result] += 1

  def made(self, name: str, op: str, once: bool = False) -> Node | None:
    """The node that makes a value, if it is an `op` (and used only once)."""
    node = self.makers.get(name)
    if node is None or node.op != op or (once and self.uses[name] != 1):
      return None
    return node

  def array(self, name: str) -> np.ndarray | None:
    """A constant."""
    return self.graph.constants.get(name)

  def number(self, name: str) -> float | None:
    """A constant of one number."""
    array = self.array(name)
    return (
      float(array.item()) if array is not None and array.size == 1 else None
    )

  def pair(self, node: Node, op: str, once: bool = False):
    """An input that is made by an `op`, and the other input."""
    for x, other in (node.inputs, node.inputs[::-1]):
      if made := self.made(x, op, once):
        yield made, other


def fuse(graph: Graph, result: str) -> None:
  """Shortens a graph.

  Args:
    graph: the graph; its nodes are changed.
    result: the name of its output, which stays.
  """
  for rewrite in _PASSES:
    reader = _Reader(graph, result)
    for node in graph.nodes:
      # All that is looked for ends with a node of two inputs.
      if len(node.inputs) == 2:
        rewrite(reader, node)


def _become(
  node: Node, op: str, inputs: list[str], **attributes: object
) -> None:
  """Makes a node compute its output in another way."""
  node.op, node.inputs, node.attributes = op, inputs, attributes
  node.reduced = None


def _averages(reader: _Reader, node: Node) -> None:
  """A sum, divided by how many there are; a mean, multiplied and divided."""
  if node.op != 'Div' or (count := reader.number(node.inputs[1])) is None:
    return
  total = reader.made(node.inputs[0], 'ReduceSum')
  if total and total.reduced == count:
    _become(node, 'ReduceMean', total.inputs, **total.attributes)
  product = reader.made(node.inputs[0], 'Mul')
  if product and reader.number(product.inputs[1]) == count:
    mean = reader.made(product.inputs[0], 'AveragePool')
    if mean:
      _become(node, 'AveragePool', mean.inputs, **mean.attributes)


def _keep_axes(reader: _Reader, node: Node) -> None:
  """A reduction that leaves its axes, of size 1, where they were."""
  if node.op != 'Unsqueeze':
    return
  last = found = reader.makers.get(node.inputs[0])
  while found and reader.uses[found.output] == 1:
    if found.op.startswith('Reduce'):
      axes = map(reader.array, (found.inputs[1], node.inputs[1]))
      if np.array_equal(*axes):
        found.attributes = {'keepdims': 1}
        _become(node, last.op, last.inputs, **last.attributes)
      return
    # On the way: what treats each number alone.
    others = [x for x in found.inputs if reader.number(x) is None]
    if found.op not in _ALONE or len(others) != 1:
      return
    found = reader.makers.get(others[0])


def _picks(reader: _Reader, node: Node) -> None:
  """One of an axis, without the axis."""
  cut = node.op == 'Squeeze' and reader.made(node.inputs[0], 'Slice')
  if not cut:
    return
  x, start, _, axis, _ = cut.inputs
  start, axis = reader.array(start), reader.array(axis)
  if axis.size == 1 and axis == reader.array(node.inputs[1]):
    index = reader.graph.constant(start.reshape(()), 'index')
    _become(node, 'Gather', [x, index], axis=axis.item())


def _biases(reader: _Reader, node: Node) -> None:
  """What is added per channel, as the bias of the layer before."""
  if node.op != 'Add':
    return
  for op, after in (('Conv', 2), ('Gemm', 0)):
    for layer, other in reader.pair(node, op, once=True):
      bias = reader.array(other)
      weights = reader.array(layer.inputs[1])
      if bias is None or weights is None or len(layer.inputs) > 2:
        continue
      outputs = weights.shape[0 if op == 'Conv' else 1]
      if bias.shape == (outputs,) + (1,) * after:
        name = reader.graph.constant(bias.reshape(-1), other)
        _become(node, op, [*layer.inputs, name], **layer.attributes)
        return


def _activations(reader: _Reader, node: Node) -> None:
  """ReLU, and ReLU6 as a clip; GELU as runtimes know it: 1 + erf."""
  x, other = node.inputs
  if node.op == 'Max' and 0 in (values := [*map(reader.number, (x, other))]):
    _become(node, 'Relu', [other if values[0] == 0 else x])
  elif node.op == 'Min':
    for relu, limit in reader.pair(node, 'Relu', once=True):
      if reader.number(limit) is not None:
        zero = reader.graph.constant(np.zeros((), np.float32), 'scalar')
        _become(node, 'Clip', [relu.inputs[0], zero, limit])
  elif node.op == 'Sub' and reader.number(x) == 1:
    erf = reader.made(other, 'Erf', once=True)
    product = erf and reader.made(erf.inputs[0], 'Mul', once=True)
    for negative, factor in reader.pair(product, 'Neg') if product else ():
      _become(product, 'Mul', [negative.inputs[0], factor])
      _become(node, 'Add', [other, x])
      return


def _softmaxes(reader: _Reader, node: Node) -> None:
  """Exponentials of what is below the maximum, divided by their sum."""
  if node.op != 'Div':
    return
  exp, total = (
    reader.made(x, op) for x, op in zip(node.inputs, ('Exp', 'ReduceSum'))
  )
  below = exp and reader.made(exp.inputs[0], 'Sub')
  top = below and reader.made(below.inputs[1], 'ReduceMax')
  if (
    total
    and top
    and total.inputs[0] == exp.output
    and top.inputs[0] == below.inputs[0]
    and top.inputs[1] == total.inputs[1]
    and top.attributes == total.attributes == {'keepdims': 1}
  ):
    (axis,) = reader.array(top.inputs[1])
    _become(node, 'Softmax', [below.inputs[0]], axis=int(axis))


def _layer_norms(reader: _Reader, node: Node) -> None:
  """(x - mean) * (scale / sqrt(mean square + epsilon)) + bias."""
  if node.op != 'Add':
    return
  for product, bias in reader.pair(node, 'Mul'):
    for centred, factor in reader.pair(product, 'Sub'):
      if found := _normalised(reader, centred, factor, bias):
        inputs, epsilon = found
        _become(node, 'LayerNormalization', inputs, axis=-1, epsilon=epsilon)
        return


def _normalised(
  reader: _Reader, centred: Node, factor: str, bias: str
) -> tuple[list[str], float] | None:
  """Inputs and epsilon of a layer normalisation over the last axis."""
  made = reader.made
  scaled = made(factor, 'Mul')
  for root, scale in reader.pair(scaled, 'Reciprocal') if scaled else ():
    square_root = made(root.inputs[0], 'Sqrt')
    total = square_root and made(square_root.inputs[0], 'Add')
    for variance, epsilon in reader.pair(total, 'ReduceMean') if total else ():
      square = made(variance.inputs[0], 'Mul')
      mean = made(centred.inputs[1], 'ReduceMean')
      arrays = [reader.array(n) for n in (scale, bias)]
      if (
        mean
        and square
        and square.inputs == [centred.output] * 2
        and mean.inputs[0] == centred.inputs[0]
        and mean.inputs[1] == variance.inputs[1]
        and reader.array(mean.inputs[1]).tolist() == [-1]
        and mean.attributes == variance.attributes == {'keepdims': 1}
        and all(a is not None and a.ndim == 1 for a in arrays)
      ):
        return [centred.inputs[0], scale, bias], reader.number(epsilon)
  return None


_PASSES: tuple[Callable[[_Reader, Node], None], ...] = (
  _averages,
  _keep_axes,
  _picks,
  _biases,
  _activations,
  _softmaxes,
  _layer_norms,
)
