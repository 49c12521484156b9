"""How the trials of a probe begin: as `compression.init` begins a block."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import blocks, compression, initialization, networks, trials
from cbkd_jax.blocks import Network, Tree, Variables
from cbkd_jax.data import Split, Streamed
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.experiment import Experiment
from cbkd_jax.trials import Spread


def student(
  exp: Experiment, like: compression.Student, keep: float
) -> compression.Student:
  """A student like another, whose compressed blocks have one keep ratio."""
  inherit = like.inherit
  ratios = (1.0,) * inherit + (keep,) * (len(like.widths) - inherit)
  return networks.student(exp.config, like.teacher, like.other, ratios)


def first(
  exp: Experiment,
  keep: Sequence[float],
  teacher: Variables,
  train: Split | Streamed,
  augmentation: Augmentation,
  spreads: Sequence[Spread],
) -> dict[tuple[int, float], tuple[Tree, Tree]]:
  """(block, keep ratio) -> (params, batch_stats), as `compression.init` says.

  Of trials that are one, the first keep ratio alone has an entry.
  """
  kind = exp.config['compression']['init']
  students = {k: student(exp, exp.local_student, k) for k in keep}
  local = trials.tried(students, exp.dtype, raw=kind == 'slice')
  if kind == 'pca':
    outputs = _outputs(exp, teacher, train, augmentation)
  found = {}
  for k, small in students.items():
    parts = list(exp.local.network().blocks)
    for i in range(small.inherit, len(parts)):
      parts[i] = local[i, k].module
    network = Network(tuple(parts), exp.local.head())
    own = [i for i, at in local if at == k and local[i, at].keep == k]
    if kind == 'slice':
      begun = _sliced(exp, network, small.units, teacher, own)
    else:
      begun = _drawn(exp, network, own)
    for i in own:
      params, batch_stats = begun.params[i], begun.batch_stats[i]
      if kind == 'pca' and not local[i, k].raw:
        params = initialization.fit_adapters(
          local[i, k].module,
          params,
          batch_stats,
          outputs[i - 1] / spreads[i].input,
          trials.around(outputs[i], spreads[i]),
        )
      found[i, k] = params, batch_stats
  return found


def _drawn(exp: Experiment, network: Network, own: Sequence[int]) -> Variables:
  """Random variables of the blocks `own`."""
  rng = exp.rng('probe')
  return blocks.init(network, rng, exp.image_shape, tuple(own))


def _sliced(
  exp: Experiment,
  network: Network,
  units: Sequence[int],
  teacher: Variables,
  own: Sequence[int],
) -> Variables:
  """The teacher's most important channels in the blocks `own`."""

  def from_(start: Variables) -> Variables:
    for i in own:
      start = initialization.initialize_block(
        'slice',
        i,
        teacher=exp.local,
        units=units[i],
        network=network,
        random=start,
        teacher_network=exp.local.network(),
        teacher_variables=teacher,
        images=None,
      )
    return start

  # Drawing is seconds of compiling, mostly for nothing: first see whether
  # slicing leaves anything as it was drawn.
  shapes = blocks.shapes(network, exp.image_shape)
  unset = jax.tree.map(lambda x: np.full(x.shape, np.nan, x.dtype), shapes)
  sliced = from_(unset)
  chosen = [[trees[i] for i in own] for trees in sliced]
  if any(np.isnan(x).any() for x in jax.tree.leaves(chosen)):
    drawn = _drawn(exp, network, range(len(network.parts)))
    sliced = from_(drawn)
  return sliced


def _outputs(
  exp: Experiment,
  teacher: Variables,
  train: Split | Streamed,
  augmentation: Augmentation,
) -> list[jax.Array]:
  """Each teacher block's output on some images."""
  first = np.arange(min(initialization.CALIBRATION_EXAMPLES, len(train)))
  ((images, _),) = train.batches([first])
  images = normalise(jnp.asarray(images), augmentation)
  network = exp.local.network()
  stop = len(network.blocks)
  outputs, _ = blocks.run(network, teacher, images, stop=stop)
  return [out.output for out in outputs]
