"""A whole run in a second or two: for tests of what is around the training.

Digits, the three-block network of `tiny`, a few steps per phase.
"""

import dataclasses
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import rich.console
import tiny
from ml_collections import ConfigDict

from cbkd_jax import config, training
from cbkd_jax.blocks import Architecture
from cbkd_jax.models import layers, vgg

WIDTHS = tiny.WIDTHS
STEPS = {'teacher': 40, 'stage_1': 6, 'stage_2': 6, 'thaw': 12}


def model(
  num_classes: int, image_shape: tuple[int, ...], dtype: Any, axis_name: Any
) -> Architecture:
  """For `config.teacher.model = 'tiny_run:model'`."""
  del image_shape

  def block(index: int, width: int, units: int) -> vgg.VGGBlock:
    return vgg.VGGBlock(width, units, index < 2, dtype, axis_name)

  def wiring(index: int, units: int) -> tuple:
    return vgg._wiring(5 if index == len(WIDTHS) else index, units)

  return Architecture(
    widths=WIDTHS,
    units=(1, 1, 1),
    block=block,
    head=lambda: layers.PoolingHead(num_classes),
    wiring=wiring,
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm'),
  )


def shallow(**arguments: Any) -> Architecture:
  """The same in two blocks: one stage and the thaw, half as much to compile."""
  return dataclasses.replace(model(**arguments), widths=(4, 8), units=(1, 1))


def unpooled(**arguments: Any) -> Architecture:
  """Two blocks, of which the deepest doesn't end with a pooling."""
  dtype, axis_name = arguments['dtype'], arguments['axis_name']
  return dataclasses.replace(
    shallow(**arguments),
    block=lambda i, width, units: vgg.VGGBlock(
      width, units, i == 0, dtype, axis_name
    ),
    wiring=lambda i, units: vgg._wiring(5 if i == 2 else i, units),
  )


def wider(**arguments: Any) -> Architecture:
  """The same with another width in block 1: its checkpoint doesn't fit."""
  return dataclasses.replace(model(**arguments), widths=(4, 7, 8))


def larger(**arguments: Any) -> Architecture:
  """The same, large enough to learn the digits; quick to compile."""
  return dataclasses.replace(model(**arguments), widths=(32, 48, 64))


def other(
  num_classes: int, image_shape: tuple[int, ...], dtype: Any, axis_name: Any
) -> Architecture:
  """Another family: four blocks; of 8x8 they make 4x4, 2x2, 2x2 and 2x2."""
  del image_shape
  return Architecture(
    widths=(3, 6, 10, 12),
    units=(1, 1, 1, 1),
    block=lambda i, width, units: vgg.VGGBlock(
      width, units, i < 2, dtype, axis_name
    ),
    head=lambda: layers.PoolingHead(num_classes),
  )


def unwired(**arguments: Any) -> Architecture:
  """The same, but it doesn't say how its layers connect."""
  return dataclasses.replace(model(**arguments), wiring=None)


def get_config() -> ConfigDict:
  """Also a config file: `--config=tests/tiny_run.py`."""
  config.add_configs_to_path()
  from configs import digits

  values = digits.get_config()
  values.batch_size = 16
  values.eval_batch_size = 12
  values.data.train_split = 'train[:128]'
  values.data.test_split = 'test[:32]'
  values.data.validation_size = 32
  values.data.train_size = 96
  values.data.pad = 0  # a random crop is much to compile
  values.data.flip = True
  values.teacher.model = 'tiny_run:model'
  values.teacher.steps = STEPS['teacher']
  values.stage.steps = STEPS['stage_1']
  values.thaw.steps = STEPS['thaw']
  values.compression.keep = (1.0, 0.5, 0.5)
  values.checkpoint_every_steps = 4
  values.log_every_steps = 1
  return values


def values(**changes: Any) -> dict[str, Any]:
  """The config as plain values; `teacher__steps=3` changes a nested field."""
  found = get_config()
  found.update_from_flattened_dict(
    {key.replace('__', '.'): value for key, value in changes.items()}
  )
  return config.plain(found)


def console() -> rich.console.Console:
  """One whose text `console.file.getvalue()` gives."""
  return rich.console.Console(file=io.StringIO(), width=100)


def run(
  directory: Path,
  changes: dict[str, Any] | None = None,
  interrupted: Callable[[], bool] = lambda: False,
  **arguments: Any,
) -> dict[str, Any]:
  """Runs or resumes; returns the summary."""
  arguments.setdefault('console', console())
  return training.train_and_evaluate(
    values(**(changes or {})), directory, interrupted=interrupted, **arguments
  )
