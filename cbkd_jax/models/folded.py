"""Batch normalisations multiplied into the layers whose output they read.

In eval mode a normalisation is one scale and one shift per channel. Where all
that reads a convolution's (or a dense layer's) output is a normalisation, the
scale goes into the layer's kernel and the shift into its bias. A normalisation
that reads anything else, as those of pre-activation networks do that follow a
sum, becomes its scale and shift.

Nothing here knows a family: a trace of the network says what reads what.
"""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from cbkd_jax import blocks
from cbkd_jax.blocks import Array, Network, Tree, Variables

# A part's index, and names from its params down, `/` between them.
Place = tuple[int, str]


class Norm(NamedTuple):
  """A batch normalisation.

  Attributes:
    place: where it is.
    epsilon: added to its variance.
    into: the layer that it is multiplied into; None: it stays, as a scale and
      a shift.
  """

  place: Place
  epsilon: float
  into: Place | None

  @classmethod
  def from_json(cls, found: Sequence[Any]) -> 'Norm':
    """What JSON makes of one: lists where there were tuples."""
    place, epsilon, into = found
    return cls(tuple(place), epsilon, into and tuple(into))


def find(
  network: Network, image_shape: tuple[int, int, int]
) -> tuple[Norm, ...]:
  """The network's batch normalisations, and what each can be folded into.

  Those that don't use running statistics in eval mode are left out.

  Args:
    network: the network; it is traced, nothing is computed.
    image_shape: (height, width, channels).
  """
  layers: Counter[Place] = Counter()
  norms: Counter[Place] = Counter()
  epsilons: dict[Place, float] = {}

  def mark(part: int, call: Callable, args: Any, kwargs: Any, context: Any):
    """Puts a name on what a layer gives, and one in a normalisation's place."""
    place = _place(part, context)
    if _is_layer(context):
      layers[place] += 1
      return checkpoint_name(call(*args, **kwargs), _name(place))
    if _is_norm(context, args, kwargs):
      norms[place] += 1
      epsilons[place] = context.module.epsilon
      return checkpoint_name(args[0], _name(place))
    return call(*args, **kwargs)

  # Two images: an axis of one might be dropped and added again.
  images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  with blocks.shipping():
    traced = jax.make_jaxpr(functools.partial(_logits, network, mark))(
      blocks.shapes(network, image_shape), images
    ).jaxpr
  readers = Counter(id(v) for eqn in traced.eqns for v in eqn.invars)
  readers.update(id(v) for v in traced.outvars)
  named = [eqn for eqn in traced.eqns if eqn.primitive.name == 'name']
  writers = {id(eqn.outvars[0]): eqn.params['name'] for eqn in named}
  reads = {eqn.params['name']: id(eqn.invars[0]) for eqn in named}
  once = {_name(place): place for place, n in layers.items() if n == 1}

  def into(place: Place) -> Place | None:
    if norms[place] > 1:  # each of its calls reads something else
      return None
    source = reads.get(_name(place))
    return once.get(writers.get(source)) if readers[source] == 1 else None

  return tuple(Norm(p, epsilon, into(p)) for p, epsilon in epsilons.items())


def fold(variables: Variables, norms: Sequence[Norm]) -> Variables:
  """The variables of the network without its normalisations' statistics.

  Products are taken in float64.

  Args:
    variables: of the network.
    norms: as `find` gives them.

  Returns:
    NumPy arrays: kernels and biases of the layers that normalisations were
    folded into, 'scale' and 'bias' of those that stay.
  """
  params, batch_stats = (
    [jax.tree.map(np.asarray, tree) for tree in trees] for trees in variables
  )
  for norm in norms:
    own = _take(params, norm.place) or {}
    stats = _take(batch_stats, norm.place)
    scale = own.get('scale', 1) / np.sqrt(_double(stats['var']) + norm.epsilon)
    shift = own.get('bias', 0) - _double(stats['mean']) * scale
    if norm.into is None:
      _put(
        params, norm.place, {'scale': _single(scale), 'bias': _single(shift)}
      )
      continue
    layer = _take(params, norm.into)
    bias = layer.get('bias', 0) * scale + shift
    kernel = layer['kernel'] * scale  # its last axis is the output's channels
    _put(params, norm.into, {'kernel': _single(kernel), 'bias': _single(bias)})
  return Variables(
    tuple(map(_pruned, params)), tuple(map(_pruned, batch_stats))
  )


def logits(
  network: Network,
  norms: Sequence[Norm],
  variables: Variables,
  images: Array,
) -> Array:
  """What the network gives, by the variables of `fold`.

  Args:
    network: the network.
    norms: as `find` gives them.
    variables: as `fold` gives them.
    images: `[batch, height, width, channels]`, normalised.

  Returns:
    `[batch, classes]`.
  """
  found = {norm.place: norm for norm in norms}
  biased = {norm.into for norm in norms}

  def apply(part: int, call: Callable, args: Any, kwargs: Any, context: Any):
    place, module = _place(part, context), context.module
    if place in found and context.method_name == '__call__':
      if found[place].into is not None:
        return args[0]
      scale, bias = (_variable(module, n, args[0]) for n in ('scale', 'bias'))
      return args[0] * scale + bias
    out = call(*args, **kwargs)
    if place in biased and _is_layer(context) and not module.use_bias:
      out = out + _variable(module, 'bias', out)
    return out

  return _logits(network, apply, variables, images)


def _logits(
  network: Network, interceptor: Callable, variables: Variables, x: Array
) -> Array:
  """Logits, with a function around every call of a module.

  Args:
    network: the network.
    interceptor: as flax's, with the part's index in front.
    variables: of the network.
    x: `[batch, height, width, channels]`.
  """
  for part in range(len(network.parts)):
    with nn.intercept_methods(functools.partial(interceptor, part)):
      (out,), _ = blocks.run(network, variables, x, start=part, stop=part + 1)
    x = getattr(out, 'output', None)
  return out.logits


def _place(part: int, context: Any) -> Place:
  return part, '/'.join(context.module.path)


def _name(place: Place) -> str:
  return f'{place[0]}:{place[1]}'


def _is_layer(context: Any) -> bool:
  # A subclass may do anything with its kernel.
  return context.method_name == '__call__' and type(context.module) in (
    nn.Conv,
    nn.Dense,
  )


def _is_norm(context: Any, args: Any, kwargs: Any) -> bool:
  module = context.module
  if context.method_name != '__call__' or type(module) is not nn.BatchNorm:
    return False
  if not args:  # called by keyword
    return False
  running = kwargs.get('use_running_average', (*args, None)[1])
  if running is None:
    running = module.use_running_average
  return bool(running) and module.axis == -1 and 'mask' not in kwargs


def _variable(module: nn.Module, name: str, like: Array) -> Array:
  """A module's parameter per channel, of as many axes as `like` has."""
  value = module.get_variable('params', name)
  return value.reshape((1,) * (like.ndim - 1) + (-1,))


def _take(trees: list[Tree], place: Place) -> Any:
  """Takes what is at a place out of its part's tree."""
  part, path = place
  *above, name = path.split('/')
  tree = trees[part]
  for step in above:
    tree = tree.get(step, {})
  return tree.pop(name, None)


def _put(trees: list[Tree], place: Place, value: Tree) -> None:
  part, path = place
  *above, name = path.split('/')
  tree = trees[part]
  for step in above:
    tree = tree.setdefault(step, {})
  tree[name] = value


def _pruned(tree: Tree) -> Tree:
  """Without empty dicts."""
  if not isinstance(tree, dict):
    return tree
  kept = {name: _pruned(value) for name, value in tree.items()}
  return {n: v for n, v in kept.items() if not isinstance(v, dict) or v}


def _double(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float64)


def _single(array: np.ndarray) -> np.ndarray:
  return array.astype(np.float32)
