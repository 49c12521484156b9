"""ReviewKD: deep student features, merged into shallower ones, are compared.

Chen, Liu, Zhao, Jia, "Distilling Knowledge via Knowledge Review", CVPR 2021
(arXiv:2104.09044): attention-based fusion (ABF) and hierarchical context loss
(HCL). As in mdistiller: the student's maps are those after the activation, the
teacher's those before it, and the pooled vectors are the deepest, of size 1x1.
Of VGG's five maps mdistiller leaves out the first: `at=(1, 2, 3, 4)`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.maps import adaptive_average_pool
from cbkd_jax.objectives.method import Learned, warm_up
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import apply_module, init_module
from cbkd_jax.objectives.reviewkd_networks import Fusion

_LEVELS = (4, 2, 1)
_MAX_MID = 512


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
    maps = [
      ('pooled', *map(_as_map, (student_view.pooled, teacher_view.pooled)))
    ]
    for i in reversed(self.places):
      ours, theirs = student_view.features[i], teacher_view.pre_activations[i]
      maps.append((f'cut_{i}', ours, theirs))
    mid = min(_MAX_MID, student_view.pooled.shape[-1])

    def fusion(target):
      _, *size, width = target.shape
      return Fusion(width, mid, tuple(size), self.setting.axis_name)

    return [(name, fusion(y), x, y) for name, x, y in maps]

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params, state = {}, {}
    residual = None
    for i, (name, module, x, _) in enumerate(
      self._fusions(student_view, teacher_view)
    ):
      params[name], state[name] = init_module(
        module, jax.random.fold_in(rng, i), x, residual, train=False
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
        x,
        residual,
        train=True,
      )
      ours.append(out)
      theirs.append(target)
    value = warm_up(epoch, self.warmup) * hcl_loss(ours, theirs)
    return value, {}, state


def _as_map(x: Any) -> Any:
  """A vector `[batch, c]`, or its shape, as a map of one position."""
  shape = (x.shape[0], 1, 1, x.shape[1])
  if isinstance(x, jax.ShapeDtypeStruct):
    return jax.ShapeDtypeStruct(shape, x.dtype)
  return x.reshape(shape)
