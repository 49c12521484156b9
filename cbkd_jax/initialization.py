"""How a student block starts: 'random', 'slice' or 'pca'.

A stage trains one block between frozen ones. What that block computes at
first decides whether the stage trains at all, see docs/initialization.md.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import blocks
from cbkd_jax.blocks import Architecture, Layer, Network, Tree, Variables
from cbkd_jax.errors import UserError

INITS = ('random', 'slice', 'pca')
CALIBRATION_EXAMPLES = 512  # training images that 'pca' looks at
_RIDGE = 1e-3  # of the mean variance of the regression's inputs


def initialize_block(
  kind: str,
  index: int,
  *,
  teacher: Architecture,
  units: int,
  network: Network,
  random: Variables,
  teacher_network: Network,
  teacher_variables: Variables,
  images: jax.Array,
) -> Variables:
  """The first variables of a student block (with the head, if deepest).

  Args:
    kind: one of `INITS`.
    index: the block.
    teacher: the teacher's architecture.
    units: the student block's units.
    network: the student, with the teacher's interface at every cut.
    random: its randomly drawn variables.
    teacher_network: the teacher.
    teacher_variables: the teacher's variables.
    images: normalised training images `[examples, height, width, channels]`;
      only 'pca' looks at them.

  Returns:
    `random` with the block's entries replaced.

  Raises:
    UserError: 'slice' for a family that does not say how its layers connect.
  """
  params, stats = list(random.params), list(random.batch_stats)
  if kind == 'slice':
    if teacher.wiring is None:
      raise UserError(
        "compression.init = 'slice': the teacher's model gives no wiring; "
        f'allowed: {", ".join(i for i in INITS if i != "slice")}'
      )
    sliced = slice_block(
      teacher,
      index,
      units,
      _part(teacher_variables, index),
      _part(random, index),
    )
    (params[index], stats[index]), kept = sliced
    if index == len(network.blocks) - 1:
      params[-1], stats[-1] = slice_head(
        teacher, _part(teacher_variables, -1), _part(random, -1), kept
      )
  elif kind == 'pca':
    outputs, _ = blocks.run(
      teacher_network, teacher_variables, images, stop=index + 1
    )
    x, y = outputs[index - 1].output, outputs[index].output
    params[index] = fit_adapters(
      network.blocks[index], params[index], stats[index], x, y
    )
  return Variables(tuple(params), tuple(stats))


def _part(variables: Variables, index: int) -> tuple[Tree, Tree]:
  return variables.params[index], variables.batch_stats[index]


def slice_block(
  teacher: Architecture,
  index: int,
  units: int,
  teacher_part: tuple[Tree, Tree],
  random_part: tuple[Tree, Tree],
) -> tuple[tuple[Tree, Tree], np.ndarray | None]:
  """A student block made of the teacher block's most important channels.

  Channels that layers write are ranked by the sum of their |scale| in the
  normalisations after them (Liu et al., ICCV 2017), or where there is none by
  the L1 norm of the filters that write them (Li et al., ICLR 2017); the
  block's input channels by that of the filters that read them. `reduce` picks
  the chosen channels, `expand` puts them back in their places. (A block
  without adapters has neither, and keeps all channels of its output.)

  Args:
    teacher: the teacher's architecture.
    index: the block.
    units: the student block's units, fewer of the teacher's as its
      `kept_units` says.
    teacher_part: the teacher block's params and batch_stats.
    random_part: the student block's, for their shapes.

  Returns:
    The student block's params and batch_stats, and the teacher's output
    channels that it kept (None: all).
  """
  source = {
    layer.path: layer for layer in teacher.wiring(index, teacher.units[index])
  }
  rank = _ranking(source.values(), teacher_part[0])
  params, stats = (dict(tree) for tree in random_part)
  if teacher.kept_units is None:
    chosen_units = np.linspace(0, teacher.units[index] - 1, units).round()
  else:
    chosen_units = teacher.kept_units(index, units)

  def origin(layer: Layer) -> Layer:
    return source[
      re.sub(
        r'unit_(\d+)',
        lambda m: f'unit_{int(chosen_units[int(m[1])])}',
        layer.path,
      )
    ]

  kept = None
  inner, inner_stats = params, stats
  if teacher.adapted:
    inner, inner_stats = params['inner'], stats.get('inner', {})
  for layer in teacher.wiring(index, units):
    old = origin(layer)
    tree = _leaf(inner, layer.path)
    rows = columns = None
    if old.reads is not None:
      rows = rank(old.reads, np.shape(tree['kernel'])[-2])
    if old.writes is not None:
      width = np.shape(next(iter(tree.values())))[-1]
      columns = rank(old.writes, width // old.copies, old.copies)
    inner = _replaced(
      inner, layer.path, _cut(_leaf(teacher_part[0], old.path), rows, columns)
    )
    if _leaf(inner_stats, layer.path):
      inner_stats = _replaced(
        inner_stats,
        layer.path,
        _cut(_leaf(teacher_part[1], old.path), rows, columns),
      )
    if layer.writes == 'output':
      kept = columns
  if not teacher.adapted:
    return (inner, inner_stats), kept
  params['inner'] = inner
  if inner_stats:
    stats['inner'] = inner_stats
  reduce = params['reduce']['kernel']
  params['reduce'] = _selection(reduce.shape, rank('input', reduce.shape[-1]))
  if 'expand' in params:
    shape = params['expand']['kernel'].shape
    kernel = np.zeros(shape, np.float32)
    kernel[0, 0, np.arange(len(kept)), kept] = 1
    params['expand'] = {
      'kernel': jnp.asarray(kernel),
      'bias': jnp.zeros(shape[-1]),
    }
  return (params, stats), kept


def slice_head(
  teacher: Architecture,
  teacher_part: tuple[Tree, Tree],
  random_part: tuple[Tree, Tree],
  kept: np.ndarray | None,
) -> tuple[Tree, Tree]:
  """The teacher's head for the deepest block's kept output channels."""
  params, stats = random_part
  for layer in teacher.wiring(len(teacher.widths), 0):
    rows = kept if layer.reads == 'input' else None
    columns = kept if layer.writes == 'input' else None
    new = _cut(_leaf(teacher_part[0], layer.path), rows, columns)
    params = _replaced(params, layer.path, new)
    if _leaf(stats, layer.path):
      new = _cut(_leaf(teacher_part[1], layer.path), rows, columns)
      stats = _replaced(stats, layer.path, new)
  return params, stats


def _ranking(layers: Any, params: Tree) -> Callable[..., np.ndarray]:
  """`(channel set, number, copies) -> indices` of its most important channels.

  Of so many copies of the set that follow one another.
  """
  layers = list(layers)
  importance, together = {}, {}
  for name in {s for layer in layers for s in (layer.reads, layer.writes) if s}:
    scales, filters, readers = [], [], []
    together[name] = max(x.together for x in layers if name in x[1:3])
    for layer in layers:
      tree = _leaf(params, layer.path)
      if layer.reads is None and layer.writes == name and 'scale' in tree:
        scales.append(np.abs(np.asarray(tree['scale'])))
      elif 'kernel' in tree:
        size = np.abs(np.asarray(tree['kernel']))
        size = size.reshape(-1, *size.shape[-2:]).sum(0)
        if layer.writes == name:
          filters.append(size.sum(0).reshape(layer.copies, -1).sum(0))
        if layer.reads == name:
          readers.append(size.sum(1))
    # Nothing in this block writes its input: there, what reads it counts.
    found = readers if name == 'input' else scales or filters or readers
    importance[name] = sum(found)

  def rank(name: str, number: int, copies: int = 1) -> np.ndarray:
    size, count = together[name], len(importance[name])
    values = importance[name].reshape(-1, size).sum(1)
    best = np.argsort(-values, kind='stable')[: number // size]
    chosen = np.sort(best)[:, None] * size + np.arange(size)[None]
    return (np.arange(copies)[:, None] * count + chosen.reshape(1, -1)).ravel()

  return rank


def _cut(
  layer: Mapping[str, jax.Array],
  rows: np.ndarray | None,
  columns: np.ndarray | None,
) -> dict[str, jax.Array]:
  """A layer's arrays at the chosen input and output channels (None: all)."""
  found = {}
  for name, value in layer.items():
    value = np.asarray(value)
    if name == 'kernel' and rows is not None:
      value = value[..., rows, :]
    found[name] = jnp.asarray(value if columns is None else value[..., columns])
  return found


def _selection(shape: tuple[int, ...], chosen: np.ndarray) -> Tree:
  kernel = np.zeros(shape, np.float32)
  kernel[0, 0, chosen, np.arange(len(chosen))] = 1
  return {'kernel': jnp.asarray(kernel), 'bias': jnp.zeros(shape[-1])}


def _leaf(tree: Tree, path: str) -> Mapping[str, Any]:
  """The layer at `path`, or an empty mapping."""
  for name in path.split('/'):
    tree = tree.get(name, {})
  return tree


def _replaced(tree: Tree, path: str, value: Tree) -> Tree:
  """`tree` with another layer at `path`; the old tree stays as it is."""
  name, _, rest = path.partition('/')
  new = _replaced(tree[name], rest, value) if rest else value
  return {**tree, name: new}


def fit_adapters(
  block: Any, params: Tree, batch_stats: Tree, x: jax.Array, y: jax.Array
) -> Tree:
  """Fits `reduce` and `expand` to a teacher block's inputs and outputs.

  `reduce` projects on the leading principal directions of the inputs,
  centred; `expand` is the ridge regression from the block's own features to
  the teacher's outputs. The block runs in train mode for it: its stage will
  see batch statistics too.

  Args:
    block: the student block.
    params: its random params.
    batch_stats: its batch_stats.
    x: the teacher block's input `[examples, height, width, channels]`.
    y: the teacher block's output.

  Returns:
    The params with `reduce`, and `expand` where there is one, replaced.
  """
  width = params['reduce']['kernel'].shape[-1]
  pixels = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  mean = pixels.mean(0)
  _, directions = np.linalg.eigh(
    np.cov(pixels.T, ddof=0).reshape(len(mean), -1)
  )
  # Another family's block may take more channels than there are directions:
  # those beyond stay as they were drawn.
  kernel = np.array(params['reduce']['kernel'][0, 0], np.float64)
  number = min(width, len(mean))
  kernel[:, :number] = directions[:, ::-1][:, :number]
  params = {**params, 'reduce': _affine(kernel, -mean @ kernel)}
  if 'expand' not in params:
    return params
  inside = {k: v for k, v in params.items() if k != 'expand'}
  out, _ = block.clone(expand=None, parent=None).apply(
    {'params': inside, 'batch_stats': batch_stats},
    x,
    train=True,
    mutable=['batch_stats'],
  )
  features = np.asarray(out.output, np.float64)
  features = features.reshape(-1, features.shape[-1])
  targets = np.asarray(y, np.float64).reshape(-1, y.shape[-1])
  feature_mean, target_mean = features.mean(0), targets.mean(0)
  features, targets = features - feature_mean, targets - target_mean
  gram = features.T @ features
  ridge = _RIDGE * np.trace(gram) / len(gram) + 1e-12
  kernel = np.linalg.solve(
    gram + ridge * np.eye(len(gram)), features.T @ targets
  )
  bias = target_mean - feature_mean @ kernel
  return {**params, 'expand': _affine(kernel, bias)}


def _affine(kernel: np.ndarray, bias: np.ndarray) -> Tree:
  return {
    'kernel': jnp.asarray(kernel[None, None], jnp.float32),
    'bias': jnp.asarray(bias, jnp.float32),
  }
