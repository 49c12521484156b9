"""A set's splits, opened and checked by what their headers tell."""

from dataclasses import dataclass
from typing import Any

from cbkd_jax.data import prepared
from cbkd_jax.errors import UserError


@dataclass(frozen=True)
class Opened:
  """A set's sources of records, none of them read.

  Attributes:
    name: of the set.
    class_names: its classes.
    train: the records of data.train_split, held-out ones last.
    test: those of data.test_split.
    train_size: how many of `train` are not held out.
    shape: of all images as declared, None where it differs between them.
  """

  name: str
  class_names: tuple[str, ...]
  train: Any
  test: Any
  train_size: int
  shape: tuple[int | None, ...]


def open_splits(
  name: str,
  *,
  data_dir: str,
  train_split: str,
  test_split: str,
  validation_size: int,
  resize: int,
  expected_classes: int | None,
  expected_train_size: int | None,
) -> Opened:
  """Opens a set; for the arguments and errors see `data.load`."""
  for field, value in ('validation_size', validation_size), ('resize', resize):
    if value < 0:
      raise UserError(f'data.{field} = {value}, but it must be 0 or more')
  prepared.check_name(name, data_dir)

  if name == 'digits':
    from cbkd_jax.data import digits

    class_names, shape = digits.CLASS_NAMES, digits.SHAPE
    train = digits.open_split(train_split, 'data.train_split')
    test = digits.open_split(test_split, 'data.test_split')
  else:
    directory = prepared.find(name, data_dir)
    builder, class_names = prepared.open_set(name, directory)
    shape = builder.info.features['image'].shape
    train = prepared.open_split(builder, name, train_split, 'data.train_split')
    test = prepared.open_split(builder, name, test_split, 'data.test_split')

  classes = len(class_names)
  if expected_classes not in (None, classes):
    raise UserError(
      f'data.classes = {expected_classes}, but {name} has {classes}'
    )
  if validation_size >= len(train):
    raise UserError(
      f'data.validation_size = {validation_size}, but {name} has only '
      f'{len(train)} examples in data.train_split = {train_split!r}'
    )
  train_size = len(train) - validation_size
  if expected_train_size not in (None, train_size):
    held_out = (
      f' after holding out data.validation_size = {validation_size}'
      if validation_size
      else ''
    )
    raise UserError(
      f'data.train_size = {expected_train_size}, but {name} has {train_size} '
      f'in data.train_split = {train_split!r}{held_out}'
    )
  return Opened(name, class_names, train, test, train_size, tuple(shape))
