"""ONNX: for onnxruntime and whatever else reads ONNX files.

The program is JAX's own trace, operation by operation (`onnx_rules`), in the
order of axes that convolutions want (`onnx_graph`), in the words that runtimes
are fast at (`onnx_fusion`).
"""

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.extend import core

from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError
from cbkd_jax.formats import onnx_fusion, onnx_int8
from cbkd_jax.formats.onnx_graph import Graph, Tensor
from cbkd_jax.formats.onnx_rules import RULES, WORDS

try:
  import onnx
  import onnxruntime
except ImportError as error:
  raise UserError(
    f"the format 'onnx' needs {error.name}: pip install '.[onnx]'"
  ) from None

SUFFIX = '.onnx'

# Read by onnxruntime from 1.14, TensorRT from 8.6.
OPSET = 18
INPUT, OUTPUT = 'images', 'logits'

# The parameters in which operations hold the program that they stand for.
_PROGRAMS = ('jaxpr', 'call_jaxpr', 'fun_jaxpr')


def write(deployed: Deployed, path: Path) -> None:
  """Writes a network.

  Args:
    deployed: the network. The file's input is 'images', its output 'logits',
      the batch of any size.
    path: the file.

  Raises:
    UserError: an operation of the network is not known here.
  """
  model = convert(deployed)
  onnx.checker.check_model(model, full_check=True)
  onnx.save(model, path)


def write_int8(
  deployed: Deployed, path: Path, images: np.ndarray
) -> dict[str, Any]:
  """Writes a network whose layers compute in 8-bit integers.

  Args:
    deployed: the network.
    path: the file; inputs and output as in `write`.
    images: to calibrate by, uint8 `[examples, height, width, channels]`.

  Returns:
    What was done, for the JSON.

  Raises:
    UserError: as in `write`.
  """
  with tempfile.TemporaryDirectory() as directory:
    plain = Path(directory) / 'plain.onnx'
    write(deployed, plain)
    done = onnx_int8.quantize(plain, path, INPUT, deployed.prepare(images))
  aware = 'quantize' in deployed.model
  return {**done, 'trained': 'with rounding' if aware else 'in float'}


def load(
  path: Path, info: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
  """The file's function from images to logits, by onnxruntime on the CPU."""
  del info  # The file says it.
  try:
    session = onnxruntime.InferenceSession(
      path.read_bytes(), providers=['CPUExecutionProvider']
    )
  except Exception as error:  # its errors have no common class of their own
    reason = ' '.join(str(error).split())
    raise UserError(
      f'{path}: onnxruntime cannot read it, is it damaged? {reason}'
    ) from None
  return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def convert(deployed: Deployed) -> onnx.ModelProto:
  """A network as an ONNX model."""
  graph, shape, classes = _graph(deployed)
  value = onnx.helper.make_tensor_value_info
  kind = onnx.helper.np_dtype_to_tensor_dtype
  model = onnx.helper.make_model(
    onnx.helper.make_graph(
      [_node(n) for n in graph.nodes],
      'student' if 'widths' in deployed.model else 'network',
      [value(INPUT, kind(np.dtype(deployed.input_dtype)), ['batch', *shape])],
      [value(OUTPUT, onnx.TensorProto.FLOAT, ['batch', classes])],
      [onnx.numpy_helper.from_array(a, n) for n, a in graph.constants.items()],
    ),
    producer_name='cbkd_jax',
    opset_imports=[onnx.helper.make_opsetid('', OPSET)],
    ir_version=onnx.helper.find_min_ir_version_for(
      [onnx.helper.make_opsetid('', OPSET)]
    ),
  )
  onnx.helper.set_model_props(model, _properties(deployed))
  return model


def _properties(deployed: Deployed) -> dict[str, str]:
  """What the file says of itself, for those who have nothing but the file."""
  scaled = {'scale': 1 / 255, 'mean': deployed.mean, 'std': deployed.std}
  return {
    'model': json.dumps(dict(deployed.model)),
    'class_names': json.dumps(deployed.class_names),
    'layout': 'NHWC',
    'normalisation': 'included' if deployed.normalised else json.dumps(scaled),
  }


def _node(node: Any) -> onnx.NodeProto:
  attributes = {
    key: onnx.helper.np_dtype_to_tensor_dtype(value)
    if isinstance(value, np.dtype)
    else value
    for key, value in node.attributes.items()
  }
  return onnx.helper.make_node(
    node.op, node.inputs, [node.output], name=node.output, **attributes
  )


def _graph(deployed: Deployed) -> tuple[Graph, tuple[int, ...], int]:
  """The graph, the shape of an image, and the number of classes."""
  (batch,) = export.symbolic_shape('batch')
  images = jax.ShapeDtypeStruct(
    (batch, *deployed.image_shape), deployed.input_dtype
  )
  program = jax.make_jaxpr(deployed.function)(deployed.arrays, images)
  arrays = [
    constant(array, _label(place))
    for place, array in jax.tree_util.tree_leaves_with_path(deployed.arrays)
  ]
  graph = Graph(INPUT)
  order = tuple(range(4))
  inputs = [*arrays, Tensor(images.shape, order, INPUT)]
  (result,) = _run(graph, program, inputs)
  name = graph.whole(result, (0, 1))
  onnx_fusion.fuse(graph, name)
  graph.finish(name, OUTPUT)
  return graph, deployed.image_shape, result.shape[1]


def constant(array: Any, name: str) -> Tensor:
  """An array of the program."""
  array = np.asarray(array)
  return Tensor(array.shape, tuple(range(array.ndim)), name, array)


def _label(place: tuple[Any, ...]) -> str:
  """`block_0/stem/conv/kernel`, of the array's place in `Deployed.arrays`."""
  return '/'.join(str(key.key) for key in place[1:])


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
    zip(jaxpr.constvars, (constant(c, 'constant') for c in program.consts))
  )
  values.update(zip(jaxpr.invars, inputs))

  def read(atom: Any) -> Tensor:
    if isinstance(atom, core.Literal):
      return constant(np.asarray(atom.val, atom.aval.dtype), 'scalar')
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
  for key in _PROGRAMS:
    if key in eqn.params:
      inner = eqn.params[key]
      if not hasattr(inner, 'consts'):
        inner = core.ClosedJaxpr(inner, ())
      return _run(graph, inner, inputs)
  if name == 'optimization_barrier':
    return inputs
  if name not in RULES:
    raise UserError(
      f"the format 'onnx' does not know the operation '{name}' of JAX, which "
      'this network has'
    )
  (out,) = (v.aval for v in eqn.outvars)
  try:
    if name not in WORDS and _is_constant(out, inputs):
      return [constant(_value(eqn, inputs), name)]
    return [RULES[name](graph, eqn.params, out, *inputs)]
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
