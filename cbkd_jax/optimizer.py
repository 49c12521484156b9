"""Schedules, the optax chain, and the mask that freezes parts."""

from collections.abc import Mapping, Sequence

import jax
import optax
from optax.contrib import MuonDimensionNumbers, muon

from cbkd_jax.stages import Training

# With it a kernel's Muon update has the root mean square of AdamW's, so that
# one learning rate serves both (Liu et al., Muon is Scalable for LLM
# Training, 2025).
_ADAMW_RMS = 0.2


def learning_rate_fn(training: Training) -> optax.Schedule:
  """The learning rate as a function of the step (0 before the first update).

  Args:
    training: its `schedule` is 'cosine' (to 0 at the last step), 'step'
      (times `decay` at each of `milestones`) or 'constant'; `warmup` is the
      fraction of the steps over which the rate rises linearly from 0.

  Returns:
    An optax schedule.
  """
  peak, steps = training.learning_rate, training.steps
  warmup = round(training.warmup * steps)
  rest = max(1, steps - warmup)
  if training.schedule == 'cosine':
    main = optax.cosine_decay_schedule(peak, rest)
  elif training.schedule == 'step':
    # Milestones count from the phase's start, the schedule from the warm-up's
    # end.
    boundaries: dict[int, float] = {}
    for milestone in training.milestones:
      at = max(1, round(milestone * steps) - warmup)
      # Of a short phase several may fall on one step: all count.
      boundaries[at] = boundaries.get(at, 1.0) * training.decay
    main = optax.piecewise_constant_schedule(peak, boundaries)
  else:
    main = optax.constant_schedule(peak)
  if not warmup:
    return main
  rise = optax.linear_schedule(0.0, peak, warmup)
  return optax.join_schedules([rise, main], [warmup])


def make_optimizer(
  training: Training,
  trained: Sequence[bool],
  learning_rates: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
  """The optimiser of a stage, over a tuple of per-part parameter trees.

  Clipping, weight decay and momentum all sit *inside* the mask: they see the
  trained parts alone, and no optimiser state exists for the others. (Outside
  of it, decay would shrink frozen weights and a clip would count frozen
  gradients.)

  'muon' (Jordan et al., Muon: An optimizer for hidden layers in neural
  networks, 2024) orthogonalises the momentum of each kernel as a matrix; what
  is no kernel takes AdamW's updates, at the same learning rate and decay.

  Args:
    training: the phase's settings.
    trained: per part, whether it trains.
    learning_rates: peak rates of entries of the last part, a dict, that
      deviate from the phase's; on the same schedule.

  Returns:
    A transformation whose updates of frozen parts are zero.
  """
  chain = []
  if training.clip_norm:
    chain.append(optax.clip_by_global_norm(training.clip_norm))
  schedule = learning_rate_fn(training)
  if training.optimizer == 'adamw':
    chain.append(
      optax.adamw(schedule, weight_decay=training.weight_decay, nesterov=False)
    )
  elif training.optimizer == 'muon':
    chain.append(
      muon(
        schedule,
        beta=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
        adam_weight_decay=training.weight_decay,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=_ADAMW_RMS,
      )
    )
  else:
    if training.weight_decay:
      chain.append(optax.add_decayed_weights(training.weight_decay))
    momentum = training.momentum or None
    chain.append(optax.sgd(schedule, momentum, nesterov=training.nesterov))
  if learning_rates:
    chain.append(_rescale(training.learning_rate, learning_rates))
  return optax.selective_transform(
    optax.chain(*chain), freeze_mask=tuple(not t for t in trained)
  )


def _matrices(params: optax.Params) -> optax.Params:
  """Each kernel's inputs and outputs, None for what is no kernel.

  Args:
    params: kernels `[height, width, in, out]` and `[in, out]`, and others.
  """

  def one(path, leaf):
    if path[-1] == jax.tree_util.DictKey('kernel') and leaf.ndim in (2, 4):
      *inputs, output = range(leaf.ndim)
      return MuonDimensionNumbers(tuple(inputs), (output,))
    return None

  return jax.tree.map_with_path(one, params)


def _rescale(
  rate: float, learning_rates: Mapping[str, float]
) -> optax.GradientTransformation:
  """Updates of the last part's named entries at rates of their own.

  Decay and momentum scale along, as in a parameter group of torch's.
  """

  def update(updates, params):
    del params
    *parts, named = updates
    scaled = {
      name: jax.tree.map(lambda u, f=learning_rates[name] / rate: f * u, tree)
      if name in learning_rates
      else tree
      for name, tree in named.items()
    }
    return (*parts, scaled)

  return optax.stateless(update)
