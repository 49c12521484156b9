"""From a JAX program to an ONNX graph: rule by rule, in the program's order."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import core

from cbkd_jax.blocks import Array, Tree
from cbkd_jax.errors import UserError
from cbkd_jax.formats import (
  onnx_axes,
  onnx_elementwise,
  onnx_fusion,
  onnx_layers,
)
from cbkd_jax.formats.onnx_graph import Graph, Tensor

_RULES = {**onnx_elementwise.RULES, **onnx_axes.RULES, **onnx_layers.RULES}

# Those that compute nothing: of a constant they make another one.
_WORDS = (
  'broadcast_in_dim',
  'convert_element_type',
  'copy',
  'name',
  'reshape',
  'squeeze',
  'stop_gradient',
  'transpose',
)

# Operations that stand for a program, run once, and the parameter with it.
# (A loop has one too, but is more.)
_PROGRAMS = {
  'jit': 'jaxpr',
  'pjit': 'jaxpr',
  'remat2': 'jaxpr',
  'checkpoint': 'jaxpr',
  'custom_jvp_call': 'call_jaxpr',
  'custom_vjp_call': 'call_jaxpr',
}


def trace(
  function: Callable[[Tree, Array], Array],
  arrays: Tree,
  shape: Sequence[int],
  dtype: Any,
  names: tuple[str, str] = ('images', 'logits'),
) -> tuple[Graph, tuple[Any, ...]]:
  """The graph of a function of arrays, which become constants, and images.

  Args:
    function: `(arrays, images) -> array`.
    arrays: nested dicts.
    shape: of one image.
    dtype: of the images.
    names: what the input and the output are called.

  Returns:
    The graph; the output's shape, its batch a symbol.

  Raises:
    UserError: an operation of the function is not known here.
  """
  (batch,) = export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct((batch, *shape), dtype)
  program = jax.make_jaxpr(function)(arrays, images)
  constants = [
    _constant(array, _label(place))
    for place, array in jax.tree_util.tree_leaves_with_path(arrays)
  ]
  graph = Graph(names[0])
  order = tuple(range(len(images.shape)))
  image = Tensor(images.shape, order, names[0])
  (result,) = _run(graph, program, [*constants, image])
  name = graph.whole(result, tuple(range(len(result.shape))))
  onnx_fusion.fuse(graph, name)
  graph.finish(name, names[1])
  return graph, result.shape


def _constant(array: Any, name: str) -> Tensor:
  """An array of the program."""
  array = np.asarray(array)
  return Tensor(array.shape, tuple(range(array.ndim)), name, array)


def _label(place: tuple[Any, ...]) -> str:
  """`block_0/stem/conv/kernel`, of the array's place in `Deployed.arrays`."""
  return '/'.join(str(key.key) for key in place[1:] or place)


def _run(graph: Graph, program: Any, inputs: list[Tensor]) -> list[Tensor]:
  """Writes the nodes of a program.

  Args:
    graph: where they go.
    program: a closed jaxpr.
    inputs: its inputs.

  Returns:
    Its outputs.
  """
  jaxpr = program.jaxpr
  values = dict(
    zip(jaxpr.constvars, (_constant(c, 'constant') for c in program.consts))
  )
  values.update(zip(jaxpr.invars, inputs))

  def read(atom: Any) -> Tensor:
    if isinstance(atom, core.Literal):
      return _constant(np.asarray(atom.val, atom.aval.dtype), 'scalar')
    return values[atom]

  for eqn in _needed(jaxpr):
    found = _outputs(graph, eqn, [read(atom) for atom in eqn.invars])
    values.update(zip(eqn.outvars, found))
  return [read(atom) for atom in jaxpr.outvars]


def _needed(jaxpr: Any) -> list[Any]:
  """The equations that the program's outputs depend on."""
  used, kept = {v for v in jaxpr.outvars if not isinstance(v, core.Literal)}, []
  for eqn in reversed(jaxpr.eqns):
    if used.intersection(eqn.outvars):
      used.update(v for v in eqn.invars if not isinstance(v, core.Literal))
      kept.append(eqn)
  return kept[::-1]


def _outputs(graph: Graph, eqn: Any, inputs: list[Tensor]) -> list[Tensor]:
  """The outputs of an equation."""
  name = eqn.primitive.name
  if name in _PROGRAMS:
    inner = eqn.params[_PROGRAMS[name]]
    if not hasattr(inner, 'consts'):
      inner = core.ClosedJaxpr(inner, ())
    return _run(graph, inner, inputs)
  if name == 'optimization_barrier':
    return inputs
  if name == 'split':
    shapes = [v.aval.shape for v in eqn.outvars]
    return onnx_axes.split(graph, eqn.params, shapes, *inputs)
  if name not in _RULES:
    raise UserError(
      f"the format 'onnx' does not know the operation '{name}' of JAX, which "
      'this network has'
    )
  (out,) = (v.aval for v in eqn.outvars)
  try:
    if name not in _WORDS and _is_constant(out, inputs):
      return [_constant(_value(eqn, inputs), name)]
    return [_RULES[name](graph, eqn.params, out, *inputs)]
  except NotImplementedError as error:
    raise UserError(
      f"the format 'onnx' can't express an operation of this network: {error}"
    ) from None


def _is_constant(out: Any, inputs: list[Tensor]) -> bool:
  return all(isinstance(n, int) for n in out.shape) and all(
    x.array is not None and not x.thin for x in inputs
  )


def _value(eqn: Any, inputs: list[Tensor]) -> np.ndarray:
  """What an equation of constants gives."""
  return np.asarray(
    eqn.primitive.bind(*(x.array for x in inputs), **eqn.params)
  )
