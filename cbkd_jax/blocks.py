"""A network is a tuple of blocks and a head, and a tuple of variable trees.

Nothing here knows a model family. A *part* is a block or the head; parts are
numbered from shallow to deep, the head last. Any part may be swapped for
another one with the same interface, which is how a stage's hybrid of teacher
and student blocks comes about: slicing two tuples, twice.
"""

import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Tree = Any

# For `run`: the name of what it keeps where it recomputes the rest, and whether
# it does so; a block reads it when it is traced.
KEPT = 'unit'
RECOMPUTING = contextvars.ContextVar('recomputing', default=False)

# Whether what is traced is to be the same program on every backend.
SHIPPING = contextvars.ContextVar('shipping', default=False)


class BlockOutput(NamedTuple):
  """What a block returns for `x [batch, height, width, channels]`.

  Attributes:
    features: the block's features as a map `[batch, height, width, channels]`,
      before any pooling that ends the block.
    pre_activation: `features` before their last activation; the same array
      where the block ends without one.
    output: what goes on to the next part (`features`, pooled where the block
      ends with pooling; a transformer's tokens `[batch, tokens, channels]`).
    normalized_input: the block's *input* after its first normalisation, for
      pre-activation networks (WRN), whose cuts lie before that layer.
  """

  features: Array
  pre_activation: Array
  output: Array
  normalized_input: Array | None = None


class HeadOutput(NamedTuple):
  """What a head returns.

  Attributes:
    logits: `[batch, classes]`, float32.
    pooled: `[batch, channels]`, the vector in front of the classifier.
    normalized_input: as in `BlockOutput`.
  """

  logits: Array
  pooled: Array
  normalized_input: Array | None = None


class View(NamedTuple):
  """What an objective sees of a network: one entry per block in the tuples."""

  logits: Array
  features: tuple[Array, ...]
  pre_activations: tuple[Array, ...]
  pooled: Array


class Variables(NamedTuple):
  """One tree per part in each tuple; `batch_stats` entries may be empty."""

  params: tuple[Tree, ...]
  batch_stats: tuple[Tree, ...]


@dataclasses.dataclass(frozen=True)
class Network:
  """Blocks from shallow to deep and a head, as Linen modules.

  Each block is called as `block(x, train) -> BlockOutput`, the head as
  `head(x, train) -> HeadOutput`. `norms` says per block where the
  normalisation in front of the activation at its cut is: (part, names from the
  part's params down, `/` between them); None where the family does not say.
  """

  blocks: tuple[Any, ...]
  head: Any
  norms: tuple[tuple[int, str], ...] | None = None

  @property
  def parts(self) -> tuple[Any, ...]:
    return (*self.blocks, self.head)

  def head_reads_features(self, image_shape: tuple[int, int, int]) -> bool:
    """Whether the head takes the deepest block's features as they are.

    Not where that block pools them, or hands tokens on.
    """
    shape = (1, *image_shape)
    for part in self.blocks:
      out, _ = _part_output(part, shape)
      shape = out.output.shape
    return out.features.shape == shape


class Layer(NamedTuple):
  """How one parametrised layer of a part connects channels (see `wiring`).

  Attributes:
    path: names from the part's params down to the layer, `/` between them.
    reads: name of the channel set of its input; None for layers that treat
      every channel apart, a normalisation or a depthwise convolution, and where
      all channels stay.
    writes: name of the channel set of its output; None for a classifier, and
      where all channels stay.
    copies: how often its output has the set, one after the other (3 for a
      transformer's queries, keys and values).
    together: neighbouring channels of what it writes that stay or go as one
      (an attention head's).
  """

  path: str
  reads: str | None
  writes: str | None
  copies: int = 1
  together: int = 1


@dataclasses.dataclass(frozen=True)
class Architecture:
  """How to build a network of a family, at its own widths or smaller ones.

  Attributes:
    widths: output channels of each block.
    units: repeated units (convolutions, residual units) in each block.
    block: `(index, width, units) -> module`. Input channels are inferred.
    head: `() -> module`.
    width_step: a block's width is a multiple of this (4 for bottlenecks).
    wiring: `(index, units) -> tuple[Layer, ...]`, for `init='slice'`; `index
      == len(widths)` asks for the head's. Channel sets are named freely but
      for 'input' and 'output', the part's own. None where the family does not
      say.
    kept_units: `(index, units) -> tuple[int, ...]`: which of a block's own
      units one of fewer `units` stands for. None: evenly spaced ones, the
      first always.
    cut_norm: `(index, units) -> (part, path)` of the normalisation before the
      activation at the end of a block, as in `Network.norms`.
    adapted: whether a student block sits between 1x1 convolutions that give
      it the teacher's channels. False where a narrower block has the teacher's
      interface by itself (a transformer's tokens keep their width): all parts
      take and return the teacher's channels then, and a block's width is that
      of its units' inside.
    torch_names: whose PyTorch code -> `(part, path) -> name` of the torch
      module that holds what lies at `path` (names from the part's params down,
      `/` between them), e.g. {'torchvision': ...} with (0, 'stem/conv') ->
      'conv1'. Parts are those of the whole network, the head the last.
  """

  widths: tuple[int, ...]
  units: tuple[int, ...]
  block: Callable[[int, int, int], Any]
  head: Callable[[], Any]
  width_step: int = 1
  wiring: Callable[[int, int], tuple[Layer, ...]] | None = None
  kept_units: Callable[[int, int], tuple[int, ...]] | None = None
  cut_norm: Callable[[int, int], tuple[int, str]] | None = None
  adapted: bool = True
  torch_names: Mapping[str, Callable[[int, str], str]] | None = None

  def network(self) -> Network:
    """The network at the architecture's own widths and units."""
    return Network(
      blocks=tuple(
        self.block(i, width, units)
        for i, (width, units) in enumerate(zip(self.widths, self.units))
      ),
      head=self.head(),
      norms=self.cut_norm
      and tuple(self.cut_norm(i, n) for i, n in enumerate(self.units)),
    )


def init(
  network: Network,
  rng: Array,
  image_shape: tuple[int, int, int],
  parts: tuple[int, ...] | None = None,
) -> Variables:
  """Random variables; a part's do not depend on the other parts.

  Args:
    network: the network.
    rng: a PRNG key; part i uses `fold_in(rng, i)`.
    image_shape: (height, width, channels).
    parts: the parts to draw, default all; the others' entries are None.

  Returns:
    The variables.
  """
  if parts is None:
    parts = tuple(range(len(network.parts)))
  on_cpu = jax.default_backend() == 'cpu'
  return _compiled_init(on_cpu)(network, rng, tuple(image_shape), parts)


@functools.cache
def _compiled_init(on_cpu: bool) -> Callable[..., Variables]:
  # One generator per kernel is much to compile and little to run: on CPU 11 s
  # for ResNet-56, half of that unoptimised.
  options = {'xla_backend_optimization_level': 0} if on_cpu else None
  return jax.jit(_init, static_argnums=(0, 2, 3), compiler_options=options)


def shapes(network: Network, image_shape: tuple[int, int, int]) -> Variables:
  """The shapes and types of a network's variables, nothing computed."""
  shape, params, batch_stats = (1, *image_shape), [], []
  for part in network.parts:
    variables, shape = part_shapes(part, shape)
    params.append(variables['params'])
    batch_stats.append(variables.get('batch_stats', {}))
  return Variables(tuple(params), tuple(batch_stats))


def part_shapes(
  part: Any, shape: tuple[int, ...]
) -> tuple[Tree, tuple[int, ...] | None]:
  """Shapes of a part's variables, and of its output for an input of `shape`.

  Cached: the networks of one plan share most of their parts.
  """
  out, variables = _part_output(part, shape)
  output = getattr(out, 'output', None)
  return variables, None if output is None else output.shape


@functools.cache
def _part_output(part: Any, shape: tuple[int, ...]) -> tuple[Any, Tree]:
  out, variables = jax.eval_shape(
    lambda: part.init_with_output(
      jax.random.key(0), jnp.zeros(shape, jnp.float32), train=False
    )
  )
  return out, variables


def view_shapes(
  network: Network, image_shape: tuple[int, int, int], batch: int
) -> View:
  """The shapes and types of a network's `View`, nothing computed."""
  shape, outputs = (1, *image_shape), []
  for part in network.parts:
    outputs.append(_part_output(part, shape)[0])
    shape = part_shapes(part, shape)[1]
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype),
    view(outputs),
  )


def _init(network, rng, image_shape, parts):
  x = jnp.zeros((1, *image_shape), jnp.float32)
  params: list[Tree] = [None] * len(network.parts)
  batch_stats: list[Tree] = [None] * len(network.parts)
  for index, part in enumerate(network.parts):
    out, variables = part.init_with_output(
      jax.random.fold_in(rng, index), x, train=False
    )
    if index in parts:
      params[index] = variables['params']
      batch_stats[index] = variables.get('batch_stats', {})
    x = getattr(out, 'output', None)
  return Variables(tuple(params), tuple(batch_stats))


def run(
  network: Network,
  variables: Variables,
  x: Array,
  *,
  train: Sequence[bool] | None = None,
  start: int = 0,
  stop: int | None = None,
  remat: bool = False,
) -> tuple[list[Any], tuple[Tree, ...]]:
  """Runs parts `start` to `stop - 1` on `x`, the output of part `start - 1`.

  Args:
    network: the network.
    variables: variables of all its parts (those not run may be None).
    x: `[batch, height, width, channels]`.
    train: per part, whether it runs in train mode (batch statistics used and
      running averages updated); default none does.
    start: the first part to run.
    stop: one past the last part to run, default all.
    remat: keep of a part its input and those of its units alone (see
      `layers.unit`); the backward pass recomputes the rest.

  Returns:
    The parts' outputs, and the batch_stats of all parts after the run.
  """
  parts = network.parts
  stop = len(parts) if stop is None else stop
  train = (False,) * len(parts) if train is None else train
  outputs, batch_stats = [], list(variables.batch_stats)
  for i in range(start, stop):
    part_variables = {'params': variables.params[i]}
    if batch_stats[i]:
      part_variables['batch_stats'] = batch_stats[i]
    apply = functools.partial(_apply, parts[i], train[i], remat)
    if remat:
      # Around all of a part: what it does before its units, and gathering its
      # variables, is done again too.
      apply = jax.checkpoint(apply, policy=_KEEP_UNITS)
    out, updated = apply(part_variables, x)
    batch_stats[i] = updated.get('batch_stats', batch_stats[i])
    outputs.append(out)
    x = getattr(out, 'output', None)
  return outputs, tuple(batch_stats)


_KEEP_UNITS = jax.checkpoint_policies.save_only_these_names(KEPT)


def _apply(
  part: Any, train: bool, remat: bool, variables: Tree, x: Array
) -> tuple[Any, Tree]:
  """A part's output, its updated collections."""
  before = RECOMPUTING.set(remat)
  try:
    if train:
      return part.apply(variables, x, train=True, mutable=['batch_stats'])
    return part.apply(variables, x, train=False), {}
  finally:
    RECOMPUTING.reset(before)


@contextlib.contextmanager
def shipping() -> Iterator[None]:
  """What is traced inside is the same program on every backend."""
  before = SHIPPING.set(True)
  try:
    yield
  finally:
    SHIPPING.reset(before)


def view(outputs: Sequence[Any]) -> View:
  """The `View` of the outputs of all parts, shallowest first.

  A cut's pre-activation is the next part's normalised input where that part
  has one (the published WRN code does so), else the block's own.
  """
  *blocks, head = outputs
  pre_activations = tuple(
    block.pre_activation
    if following.normalized_input is None
    else following.normalized_input
    for block, following in zip(blocks, outputs[1:])
  )
  features = tuple(block.features for block in blocks)
  return View(head.logits, features, pre_activations, head.pooled)


def logits(network: Network, variables: Variables, x: Array) -> Array:
  """`[batch, classes]` logits in eval mode of normalised images `x`."""
  return run(network, variables, x)[0][-1].logits


def count_params(tree: Tree) -> int:
  """The number of scalars in `tree`."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))
