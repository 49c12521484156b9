"""ReviewKD: deep student features, merged into shallower ones, are compared.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021
(arXiv:2104.09044): attention-based fusion (ABF) and hierarchical context loss
(HCL). As in mdistiller: student maps after their
activation, the teacher's before it, both with the pooled vector as the
deepest 1x1 map. A first map before all blocks is ignored there, and does not
exist here; of VGG's five maps mdistiller leaves out the first, `at=(1, 2, 3,
4)`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.models import layers
from cbkd_jax.objectives.maps import adaptive_average_pool, nearest_resize
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import (
  apply_module,
  batch_norm,
  conv,
  init_module,
)

_LEVELS = (4, 2, 1)
_MAX_MID = 512


class Fusion(nn.Module):
  """ABF: a student map, merged with what the deeper ones left, at a target's
  width and size.

  Attributes:
    width: the teacher's channels.
    mid: channels in between, those of the residual.
    size: (height, width) of the teacher's map.
    axis_name: the replicas' axis.
  """

  width: int
  mid: int
  size: tuple[int, int]
  axis_name: str | None = None

  @nn.compact
  def __call__(
    self, x: jax.Array, residual: jax.Array | None, train: bool
  ) -> tuple[jax.Array, jax.Array]:
    """(what is compared, what is passed on to the next shallower map)."""
    x = conv(self.mid, name='conv1')(x)
    x = batch_norm(train, self.axis_name, name='norm1')(x)
    if residual is not None:
      residual = nearest_resize(residual, x.shape[1:3])
      # Small weights: the networks' own are made for many output channels,
      # and would saturate the sigmoid.
      shares = nn.Conv(
        2, (1, 1), kernel_init=layers.DENSE_INIT, name='attention'
      )(jnp.concatenate([x, residual], axis=-1))
      shares = nn.sigmoid(shares)
      x = x * shares[..., :1] + residual * shares[..., 1:]
    if x.shape[1:3] != self.size:
      x = nearest_resize(x, self.size)
    out = conv(self.width, 3, name='conv2')(x)
    return batch_norm(train, self.axis_name, name='norm2')(out), x


def hcl_loss(
  student: Sequence[jax.Array], teacher: Sequence[jax.Array]
) -> jax.Array:
  """Sum over maps of the mean squared error, averaged over scales.

  The maps themselves have weight 1, and pooled to 4, 2 and 1 (where that is
  less than their height) 1/2, 1/4 and 1/8, in the order in which they occur.

  Args:
    student: maps `[batch, h, w, c]`.
    teacher: maps of the same shapes.

  Returns:
    A scalar.
  """
  total = 0.0
  for ours, theirs in zip(student, teacher, strict=True):
    difference = ours - theirs  # pooling is linear
    value, weight, weights = jnp.mean(difference**2), 1.0, 1.0
    for level in _LEVELS:
      if level < difference.shape[1]:
        weight /= 2
        pooled = adaptive_average_pool(difference, (level, level))
        value += weight * jnp.mean(pooled**2)
        weights += weight
    total += value / weights
  return total


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnowledgeReview(Looking, Learned):
  """`reviewkd(warmup=20.0)`: the weight rises linearly for so many epochs.

  The authors' weights for CIFAR-100 are 5 (WRN pairs, resnet32x4 to
  resnet8x4, and to ShuffleNetV1), 8 (resnet32x4 to ShuffleNetV2), 0.6
  (resnet56 to resnet20) and 1 (resnet110 to resnet32); mdistiller has 5 for
  resnet32x4 to resnet8x4.
  """

  warmup: float = 20.0

  name: ClassVar[str] = 'reviewkd'
  paper: ClassVar[str] = (
    'Chen et al., Distilling Knowledge via Knowledge Review, CVPR 2021'
  )
  recipe: ClassVar[str] = 'ce + 5*reviewkd(warmup=20)'
  knowledge: ClassVar[str] = 'feature'
  needs: ClassVar[tuple[str, ...]] = ('epoch',)
  whole: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    self.require_from_zero('warmup')

  def _fusions(
    self, student_view: View, teacher_view: View
  ) -> list[tuple[str, Fusion, Any, Any]]:
    """(name, module, student's map, teacher's map), deepest first."""
    names, ours, theirs = ['pooled'], [student_view.pooled], []
    theirs.append(teacher_view.pooled)
    for i in reversed(self.places):
      names.append(f'cut_{i}')
      ours.append(student_view.features[i])
      theirs.append(teacher_view.pre_activations[i])
    mid = min(_MAX_MID, student_view.pooled.shape[-1])
    found = []
    for name, x, target in zip(names, ours, theirs):
      size = target.shape[1:3] if len(target.shape) == 4 else (1, 1)
      module = Fusion(target.shape[-1], mid, size, self.setting.axis_name)
      found.append((name, module, x, target))
    return found

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    residual = None
    for i, (name, module, x, _) in enumerate(
      self._fusions(student_view, teacher_view)
    ):
      x = _as_map(x)
      params[name], state[name] = init_module(
        module,
        jax.random.fold_in(rng, i),
        x,
        residual,
        train=False,
      )
      residual = jax.ShapeDtypeStruct(
        (x.shape[0], *module.size, module.mid), x.dtype
      )
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    epoch: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    ours, theirs, state, residual = [], [], {}, None
    for name, module, x, target in self._fusions(student_view, teacher_view):
      (out, residual), state[name] = apply_module(
        module,
        variables['params'][name],
        variables['state'][name],
        _as_map(x),
        residual,
        train=True,
      )
      ours.append(out)
      theirs.append(_as_map(target))
    value = hcl_loss(ours, theirs)
    if self.warmup:
      value *= jnp.minimum(epoch / self.warmup, 1.0)
    return value, {}, state


def _as_map(x: Any) -> Any:
  """A vector `[batch, c]`, or its shape, as a map of one position."""
  if len(x.shape) == 4:
    return x
  shape = (x.shape[0], 1, 1, x.shape[1])
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(shape, x.dtype)
  return x.reshape(shape)
