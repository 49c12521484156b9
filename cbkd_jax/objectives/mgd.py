"""MGD: from a masked map of the student the teacher's whole one is generated.

Yang, Li, Shao, Shi, Yuan, Yuan, "Masked Generative Distillation", ECCV 2022
(arXiv:2205.01529). The squared error is *summed* over a map and averaged over
examples, hence the small weights; what is kept is not rescaled.

The published code draws a mask per channel for classification and one per
pixel for detection and segmentation.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import conv, init_module


class Generator(nn.Module):
  """Masks a map and generates: 3x3 - ReLU - 3x3 convolutions.

  Where channels differ a 1x1 convolution aligns them before the mask. All
  have a bias.

  Attributes:
    width: the teacher's channels.
  """

  width: int

  @nn.compact
  def __call__(self, x: jax.Array, kept: jax.Array) -> jax.Array:
    if x.shape[-1] != self.width:
      x = conv(self.width, use_bias=True, name='align')(x)
    x = conv(self.width, 3, use_bias=True, name='conv1')(x * kept)
    return conv(self.width, 3, use_bias=True, name='conv2')(nn.relu(x))


def kept(uniform: jax.Array, mask: float) -> jax.Array:
  """1 where a map is kept, 0 for a share of about `mask`.

  Args:
    uniform: numbers in [0, 1), `[batch, 1, 1, c]` or `[batch, h, w, 1]`.
    mask: the share to mask.

  Returns:
    An array like it.
  """
  return (uniform >= mask).astype(uniform.dtype)


def mgd_loss(generated: jax.Array, teacher: jax.Array) -> jax.Array:
  """Sum of squared differences, mean over examples.

  Args:
    generated: `[batch, h, w, c]`.
    teacher: the teacher's map, of the same shape.

  Returns:
    A scalar.
  """
  return jnp.sum((generated - teacher) ** 2) / generated.shape[0]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedGenerativeDistillation(Looking, Learned):
  """`mgd(mask=0.15)`, at the deepest block, masking channels.

  `mask` is the masked share; `spatial_mask=True` masks pixels instead of
  channels. The recipe is the authors' for ImageNet, where a map has 512 x 7 x 7
  numbers; the sum, and so its best weight, depends on how many there are. For
  CIFAR-100, at 512 x 4 x 4, their cls_KD lists 0.0012*mgd(mask=0.15).
  """

  at: str | int | tuple = 'last'
  mask: float = 0.15
  spatial_mask: bool = False

  name: ClassVar[str] = 'mgd'
  paper: ClassVar[str] = (
    'Yang et al., Masked Generative Distillation, ECCV 2022'
  )
  recipe: ClassVar[str] = 'ce + 7e-5*mgd(mask=0.15)'
  knowledge: ClassVar[str] = 'feature'
  needs: ClassVar[tuple[str, ...]] = ('keys',)

  def __post_init__(self):
    super().__post_init__()
    self.require_fraction('mask')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    params = {}
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      if ours.shape[1:3] != theirs.shape[1:3]:
        ours, theirs = ('{}x{}'.format(*x.shape[1:3]) for x in (ours, theirs))
        raise UserError(
          f"{self.name}: after block {cut} the student's map is {ours}, the "
          f"teacher's {theirs}; they must be of one size"
        )
      width = theirs.shape[-1]
      params[f'cut_{cut}'], _ = init_module(
        Generator(width),
        jax.random.fold_in(rng, cut),
        ours,
        jax.ShapeDtypeStruct((1, 1, 1, 1), ours.dtype),
      )
    return {'params': params}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    *,
    keys: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    total = jnp.float32(0)
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      uniform = self.draw(keys, cut, theirs.shape).astype(ours.dtype)
      generated = Generator(theirs.shape[-1]).apply(
        {'params': variables['params'][f'cut_{cut}']},
        ours,
        kept(uniform, self.mask),
      )
      total += mgd_loss(generated, theirs)
    return total, {}, {}

  def draw(
    self, keys: jax.Array, cut: int, shape: tuple[int, ...]
  ) -> jax.Array:
    """Uniform numbers, an example's from its own key.

    Args:
      keys: `[batch]`.
      cut: the block.
      shape: the teacher's map's.

    Returns:
      `[batch, 1, 1, c]`, or with `spatial_mask` `[batch, h, w, 1]`.
    """
    _, height, width, channels = shape
    own = (height, width, 1) if self.spatial_mask else (1, 1, channels)

    def one(key):
      return jax.random.uniform(jax.random.fold_in(key, cut), own)

    return jax.vmap(one)(keys)
