"""FT: the student's translated factors follow the teacher's paraphrased ones.

Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor
Transfer", NeurIPS 2018 (arXiv:1802.04977), with RepDistiller's networks and
loss. An autoencoder of the teacher's map, the paraphraser, trains first and
alone; its code is what a translator of the student's map is to give.

RepDistiller trains the paraphraser for 30 epochs, at learning rate 0.01 for
the residual networks, before the 240 of the student; here the pre-stage takes
an eighth of the phase's own steps. An odd power p2 above 1 is of the absolute
difference here, in RepDistiller of the signed one.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.at import attention
from cbkd_jax.objectives.ft_networks import Coder, Paraphraser
from cbkd_jax.objectives.maps import absolute, match_sizes
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import (
  apply_module,
  init_module,
  same_shapes,
)


def factor_loss(
  student: jax.Array, teacher: jax.Array, p1: int = 2, p2: int = 1
) -> jax.Array:
  """Mean of |difference|^p2 of the factors' normalised channel means.

  Args:
    student: the translated map `[batch, h, w, c]`.
    teacher: the paraphrased one; sizes and channels may differ.
    p1: power of the entries before the mean over channels, signed.
    p2: power of the differences.

  Returns:
    A scalar.
  """
  ours, theirs = match_sizes(student, teacher)
  difference = attention(ours, p1) - attention(theirs, p1)
  return jnp.mean(absolute(difference) ** p2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FactorTransfer(Looking, Learned):
  """`ft(p1=2, p2=1, k=0.5, use_bn=False, pre_fraction=0.125)`.

  Looks at the deepest map; several places have a pair of networks each, and
  are summed. The factors have k times the teacher's channels. `use_bn` is the
  paraphraser's; the translator always has batch normalisation. The paraphraser
  trains in the pre-stage, and is frozen, in eval mode, afterwards. It knows
  nothing of the student: the next pre-stage goes on with it.
  """

  at: str | int | tuple = 'last'
  p1: int = 2
  p2: int = 1
  k: float = 0.5
  use_bn: bool = False
  pre_fraction: float = 0.125

  name: ClassVar[str] = 'ft'
  paper: ClassVar[str] = (
    'Kim et al., Paraphrasing Complex Network: Network Compression via Factor '
    'Transfer, NeurIPS 2018'
  )
  recipe: ClassVar[str] = 'ce + 200*ft(p1=2, p2=1, k=0.5)'
  knowledge: ClassVar[str] = 'feature'
  prepares: ClassVar[str | None] = 'variables'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('p1', 'p2', 'k')
    if not 0 < self.pre_fraction < 1:
      self.fail(
        'pre_fraction', 'above 0 and below 1: the paraphraser has to train'
      )

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      width, key = theirs.shape[-1], f'cut_{cut}'
      if self._code(width) < 1:
        self.fail('k', f'at least 1/{width}, of {width} channels')
      rngs = jax.random.split(jax.random.fold_in(rng, cut))
      paraphraser, stats = init_module(
        self._paraphraser(width), rngs[0], theirs, train=False
      )
      if self.setting.preparing:
        params[key] = {'paraphraser': paraphraser}
        state[key] = {'paraphraser': stats}
        continue
      translator, translator_stats = init_module(
        self._translator(ours.shape[-1], width), rngs[1], ours, train=False
      )
      params[key] = {'translator': translator}
      state[key] = {
        'translator': translator_stats,
        'paraphraser': {'params': paraphraser, 'batch_stats': stats},
      }
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    one = self._reconstruction if self.setting.preparing else self._transfer
    total, state = jnp.float32(0), {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      key = f'cut_{cut}'
      value, state[key] = one(
        variables['params'][key], variables['state'][key], ours, theirs
      )
      total += value
    return total, {}, state

  def adopt(
    self, variables: dict[str, Any], previous: dict[str, Any]
  ) -> dict[str, Any]:
    """Takes over the paraphrasers that fit, from before or after a stage."""
    params, state = dict(variables['params']), dict(variables['state'])
    for key in params:
      if key not in previous['params']:
        continue
      before = _paraphraser_of(previous['params'][key], previous['state'][key])
      fresh = _paraphraser_of(params[key], state[key])
      if not same_shapes(before, fresh):
        continue
      if self.setting.preparing:
        params[key] = {'paraphraser': before['params']}
        state[key] = {'paraphraser': before['batch_stats']}
      else:
        state[key] = {**state[key], 'paraphraser': before}
    return {'params': params, 'state': state}

  def _reconstruction(self, params, state, ours, theirs):
    """(mean squared error of the autoencoder, its new state)."""
    (_, rebuilt), stats = apply_module(
      self._paraphraser(theirs.shape[-1]),
      params['paraphraser'],
      state['paraphraser'],
      theirs,
      train=True,
    )
    return jnp.mean((rebuilt - theirs) ** 2), {'paraphraser': stats}

  def _transfer(self, params, state, ours, theirs):
    """(the factors' loss, the translator's new state beside the frozen one)."""
    width = theirs.shape[-1]
    frozen = state['paraphraser']
    (target, _), _ = apply_module(
      self._paraphraser(width),
      frozen['params'],
      frozen['batch_stats'],
      theirs,
      train=False,
    )
    factors, stats = apply_module(
      self._translator(ours.shape[-1], width),
      params['translator'],
      state['translator'],
      ours,
      train=True,
    )
    value = factor_loss(factors, target, self.p1, self.p2)
    return value, {'translator': stats, 'paraphraser': frozen}

  def _code(self, width: int) -> int:
    return int(width * self.k)

  def _paraphraser(self, width: int) -> Paraphraser:
    axis_name = self.setting.axis_name
    return Paraphraser(width, self._code(width), self.use_bn, axis_name)

  def _translator(self, width: int, teacher_width: int) -> Coder:
    code = self._code(teacher_width)
    axis_name = self.setting.axis_name
    return Coder((width, code, code), use_bn=True, axis_name=axis_name)


def _paraphraser_of(params: Any, state: Any) -> dict[str, Any]:
  """The paraphraser's variables in a cut's, of either phase."""
  if 'paraphraser' not in params:
    return state['paraphraser']
  return {
    'params': params['paraphraser'],
    'batch_stats': state['paraphraser'],
  }
