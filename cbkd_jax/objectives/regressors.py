"""Learned maps from the student's features to the teacher's.

Linen modules whose variables a method holds: `init_module` and `apply_module`
sort them into trained 'params' and carried 'state' (batch statistics).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cbkd_jax.errors import UserError
from cbkd_jax.models import layers
from cbkd_jax.objectives.method import Learned


def conv(
  width: int,
  kernel: int = 1,
  stride: int = 1,
  *,
  use_bias: bool = False,
  padding: Any = None,
  name: str | None = None,
) -> nn.Conv:
  """A convolution with the networks' initialisation, in its input's type.

  Args:
    width: output channels.
    kernel: its side.
    stride: along both sides.
    use_bias: whether it has a bias.
    padding: as in Linen; None pads kernel // 2 on every side.
    name: in the tree.

  Returns:
    A module `[batch, h, w, c] -> [batch, h', w', width]`.
  """
  return nn.Conv(
    width,
    (kernel, kernel),
    strides=stride,
    padding=kernel // 2 if padding is None else padding,
    use_bias=use_bias,
    kernel_init=layers.CONV_INIT,
    name=name,
  )


def batch_norm(
  train: bool, axis_name: str | None, name: str | None = None
) -> nn.BatchNorm:
  """Batch normalisation, its statistics always those of all replicas.

  Args:
    train: whether by the batch's statistics.
    axis_name: the replicas' axis.
    name: in the tree.

  Returns:
    A module.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=layers.BATCH_NORM_MOMENTUM,
    epsilon=layers.BATCH_NORM_EPSILON,
    axis_name=axis_name,
    name=name,
  )


class ConvRegressor(nn.Module):
  """RepDistiller's ConvReg: convolution, normalisation and perhaps a ReLU.

  The convolution leads from the student's side to the teacher's: 3x3 of
  stride 2 from twice the side, a transposed 4x4 of stride 2 from half of it,
  else unpadded with kernel 1 + difference (1x1 at equal sides).

  Attributes:
    width: the teacher's channels.
    side: the teacher's height.
    use_relu: FitNet has it, AB hasn't.
    axis_name: the replicas' axis.
  """

  width: int
  side: int
  use_relu: bool = True
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, train: bool) -> jax.Array:
    side = x.shape[1]
    if side == 2 * self.side:
      x = conv(self.width, 3, 2, use_bias=True, name='conv')(x)
    elif self.side == 2 * side:
      # torch's padding of 1 crops one row on every side of the full result.
      x = nn.ConvTranspose(
        self.width,
        (4, 4),
        strides=(2, 2),
        padding=((2, 2), (2, 2)),
        transpose_kernel=True,
        kernel_init=layers.CONV_INIT,
        name='conv',
      )(x)
    else:
      x = conv(
        self.width,
        1 + side - self.side,
        use_bias=True,
        padding='VALID',
        name='conv',
      )(x)
    x = batch_norm(train, self.axis_name, name='norm')(x)
    return nn.relu(x) if self.use_relu else x


def check_conv_regressor(
  name: str, cut: int, student: jax.Array, teacher: jax.Array
) -> None:
  """Refuses maps between which `ConvRegressor` can't lead.

  Args:
    name: the method's.
    cut: the block behind which they come.
    student: its map `[batch, side, side, c]`, or its shape.
    teacher: likewise.

  Raises:
    UserError: naming the cut and both sizes.
  """
  ours, theirs = student.shape[1], teacher.shape[1]
  if ours < theirs != 2 * ours:
    raise UserError(
      f"{name}: after block {cut} the student's map has side {ours}, the "
      f"teacher's {theirs}; it must be at least as large or exactly half"
    )


def init_module(
  module: nn.Module, rng: jax.Array, *inputs: Any, **arguments: Any
) -> tuple[Any, Any]:
  """Initial variables of a module, from its inputs' shapes.

  Args:
    module: the module.
    rng: a PRNG key.
    *inputs: arrays or shapes, `[batch, ...]`.
    **arguments: static ones of its call.

  Returns:
    (params, batch_stats).
  """
  examples = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), inputs)
  variables = module.init(rng, *examples, **arguments)
  return variables.get('params', {}), variables.get('batch_stats', {})


def apply_module(
  module: nn.Module, params: Any, batch_stats: Any, *inputs: Any, train: bool
) -> tuple[Any, Any]:
  """Runs a module whose call takes `train`.

  Args:
    module: the module.
    params: its parameters.
    batch_stats: its statistics; may be empty.
    *inputs: arrays `[batch, ...]`.
    train: by the batch's statistics, and updates them.

  Returns:
    (output, new batch_stats).
  """
  variables = {'params': params}
  if batch_stats:
    variables['batch_stats'] = batch_stats
  if not train:
    return module.apply(variables, *inputs, train=False), batch_stats
  output, updated = module.apply(
    variables, *inputs, train=True, mutable=['batch_stats']
  )
  return output, updated.get('batch_stats', batch_stats)


def same_shapes(one: Any, two: Any) -> bool:
  """Whether two trees, of arrays or shapes, are of one structure and shape.

  Args:
    one: a tree.
    two: a tree.

  Returns:
    A boolean.
  """
  one, two = (jax.tree.map(lambda x: x.shape, tree) for tree in (one, two))
  return one == two


@dataclasses.dataclass(frozen=True, kw_only=True)
class Connected(Learned):
  """A method that wants equal channels and has no regressor of its own.

  `regressor='auto'`: where widths differ (in the thaw, in joint training, at
  the deepest cut) a learned 1x1 convolution leads from the student's to the
  teacher's. 'none': there must be no difference.
  """

  regressor: str = 'auto'

  def __post_init__(self):
    super().__post_init__()
    self.require_choice('regressor', ('auto', 'none'))

  def init_connectors(
    self,
    rng: jax.Array,
    places: Sequence[int],
    student: Sequence[jax.Array],
    teacher: Sequence[jax.Array],
  ) -> dict[str, Any]:
    """The convolutions' parameters; none where the widths are equal.

    Args:
      rng: a PRNG key.
      places: the blocks behind which the maps come.
      student: its maps `[batch, h, w, c]`, or their shapes.
      teacher: likewise.

    Returns:
      {'cut_<block>': params}.

    Raises:
      UserError: `regressor='none'` and widths differ.
    """
    params = {}
    for cut, ours, theirs in zip(places, student, teacher):
      width = theirs.shape[-1]
      if ours.shape[-1] == width:
        continue
      if self.regressor == 'none':
        raise UserError(
          f"{self.name}.regressor = 'none': after block {cut} the student "
          f"has {ours.shape[-1]} channels and the teacher {width}; 'auto' "
          'learns a 1x1 convolution between them'
        )
      module = conv(width, use_bias=True)
      key = jax.random.fold_in(rng, cut)
      params[f'cut_{cut}'] = init_module(module, key, ours)[0]
    return params

  def connect(
    self,
    params: dict[str, Any],
    places: Sequence[int],
    maps: Sequence[jax.Array],
  ) -> tuple[jax.Array, ...]:
    """Brings the student's maps to the teacher's widths.

    Args:
      params: from `init_connectors`.
      places: as there.
      maps: the student's, `[batch, h, w, c]`.

    Returns:
      As many maps.
    """
    found = []
    for cut, x in zip(places, maps):
      if f'cut_{cut}' in params:
        tree = params[f'cut_{cut}']
        module = conv(tree['kernel'].shape[-1], use_bias=True)
        x = module.apply({'params': tree}, x)
      found.append(x)
    return tuple(found)
