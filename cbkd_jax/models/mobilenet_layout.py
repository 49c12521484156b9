"""Where a unit of MobileNetV2 is: in groups, in blocks, in others' code."""

import functools
from collections.abc import Mapping

from cbkd_jax.errors import UserError

# Channels and units of each group, and the groups of each block.
GROUP_WIDTHS = (16, 24, 32, 64, 96, 160, 320)
GROUP_UNITS = (1, 2, 3, 4, 3, 3, 1)
BLOCK_GROUPS = ((0, 1), (2,), (3, 4), (5, 6))


def place(index: int, unit: int) -> tuple[int, int]:
  """The group of a block's unit, and the unit's number in its group."""
  for group in BLOCK_GROUPS[index]:
    if unit < GROUP_UNITS[group]:
      return group, unit
    unit -= GROUP_UNITS[group]
  raise AssertionError(f'block {index} has no such unit')


def kept_units(index: int, units: int) -> tuple[int, ...]:
  """Which of a block's own units one of fewer units stands for.

  The first of each group, which alone changes the number of channels, and of
  the others evenly spaced ones, the deepest always.

  Raises:
    UserError: fewer units than groups.
  """
  sizes = [GROUP_UNITS[group] for group in BLOCK_GROUPS[index]]
  firsts = [sum(sizes[:i]) for i in range(len(sizes))]
  if units < len(firsts):
    raise UserError(
      f'compression.depth: {units} unit in block {index} of a MobileNetV2; at '
      f'least {len(firsts)} are needed, one in each of its groups'
    )
  others = [n for n in range(sum(sizes)) if n not in firsts]
  number = units - len(firsts)
  chosen = [others[(i + 1) * len(others) // number - 1] for i in range(number)]
  return tuple(sorted(firsts + chosen))


def _name(
  layers: Mapping[str, str],
  in_first_unit: Mapping[str, str],
  unit_name: str,
  part: int,
  path: str,
) -> str:
  """The torch module's name, see `Architecture.torch_names`."""
  if path in layers:
    return layers[path]
  unit, layer = path.split('/')
  group, number = place(part, int(unit.removeprefix('unit_')))
  # torchvision numbers the stem and all units in a row.
  row = 1 + sum(GROUP_UNITS[:group]) + number
  unit = unit_name.format(group=group, number=number, row=row)
  return f'{unit}.{(layers if row > 1 else in_first_unit)[layer]}'


_REPDISTILLER = {
  'stem/conv': 'conv1.0',
  'stem/norm': 'conv1.1',
  # Convolution, normalisation, ReLU, and so on.
  'conv1': '0',
  'norm1': '1',
  'conv2': '3',
  'norm2': '4',
  'conv3': '6',
  'norm3': '7',
  'last/conv': 'conv2.0',
  'last/norm': 'conv2.1',
  'classifier': 'classifier.0',
}
_TORCHVISION = {
  'stem/conv': 'features.0.0',
  'stem/norm': 'features.0.1',
  'conv1': '0.0',
  'norm1': '0.1',
  'conv2': '1.0',
  'norm2': '1.1',
  'conv3': '2',
  'norm3': '3',
  'last/conv': 'features.18.0',
  'last/norm': 'features.18.1',
  'classifier': 'classifier.1',
}
_TIMM = {
  'stem/conv': 'conv_stem',
  'stem/norm': 'bn1',
  'conv1': 'conv_pw',
  'norm1': 'bn1',
  'conv2': 'conv_dw',
  'norm2': 'bn2',
  'conv3': 'conv_pwl',
  'norm3': 'bn3',
  'last/conv': 'conv_head',
  'last/norm': 'bn2',
  'classifier': 'classifier',
}

CIFAR_NAMES = {
  # mdistiller's are the same.
  'repdistiller': functools.partial(
    _name, _REPDISTILLER, _REPDISTILLER, 'blocks.{group}.{number}.conv'
  ),
}
# The first unit has no expansion there, so that its layers move up.
IMAGENET_NAMES = {
  'torchvision': functools.partial(
    _name,
    _TORCHVISION,
    {'conv2': '0.0', 'norm2': '0.1', 'conv3': '1', 'norm3': '2'},
    'features.{row}.conv',
  ),
  'timm': functools.partial(
    _name,
    _TIMM,
    {'conv2': 'conv_dw', 'norm2': 'bn1', 'conv3': 'conv_pw', 'norm3': 'bn2'},
    'blocks.{group}.{number}',
  ),
}
