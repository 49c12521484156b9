"""The smallest ConvNeXt and vision transformer, for whole runs.

`config.teacher.model = 'tiny_layers:vit'` or `'tiny_layers:convnext'`.
"""

from typing import Any

from cbkd_jax.blocks import Architecture
from cbkd_jax.models import convnext as convnext_
from cbkd_jax.models import vit as vit_


def vit(**arguments: Any) -> Architecture:
  """Three blocks, four heads of 3 channels."""
  sizes = {'width': 12, 'heads': 4, 'units': (1, 1, 1)}
  return vit_.architecture(name='vit', **(sizes | arguments))


def shallow_vit(**arguments: Any) -> Architecture:
  """Two blocks: one stage and the thaw."""
  return vit(units=(1, 1), **arguments)


def convnext(**arguments: Any) -> Architecture:
  """Three blocks of different widths."""
  sizes = {'widths': (4, 6, 8), 'units': (1, 1, 1)}
  return convnext_.architecture(**(sizes | arguments))
