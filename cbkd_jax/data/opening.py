"""A set's splits, opened and checked; one image is read."""

from dataclasses import dataclass
from typing import Any

from cbkd_jax.data import crops, prepared
from cbkd_jax.data.wanted import OWN, Wanted
from cbkd_jax.errors import UserError


@dataclass(frozen=True)
class Opened:
  """A set's sources of records.

  Attributes:
    class_names: its classes.
    train: the records of data.train_split, held-out ones last.
    test: those of data.test_split.
    train_size: how many of `train` are not held out.
    shape: of all images as declared, None where it differs between them or
      nothing is declared.
  """

  class_names: tuple[str, ...]
  train: Any
  test: Any
  train_size: int
  shape: tuple[int | None, ...] | None


def open_splits(wanted: Wanted) -> Opened:
  """Opens a set; for the errors see `data.load`."""
  for field in 'validation_size', 'resize':
    value = getattr(wanted, field)
    if value < 0:
      raise UserError(f'data.{field} = {value}, but it must be 0 or more')
  prepared.check_name(wanted.name, wanted.dir)
  class_names, train, test, shape = _sources(wanted)
  train_size = len(train) - wanted.validation_size
  if train_size < 1:
    raise UserError(
      f'data.validation_size = {wanted.validation_size}, but {wanted.title} '
      f'has only {len(train)} examples in data.train_split = '
      f'{wanted.train_split!r}'
    )
  opened = Opened(class_names, train, test, train_size, shape)
  _check(wanted, opened)
  return opened


def _sources(wanted: Wanted) -> tuple[tuple[str, ...], Any, Any, Any]:
  """Class names, train and test records, the declared shape."""
  expressions = {
    'data.train_split': wanted.train_split,
    'data.test_split': wanted.test_split,
  }
  if wanted.name in OWN:
    from cbkd_jax.data import own

    return *own.open_splits(wanted), None
  if wanted.name == 'digits':
    from cbkd_jax.data import digits

    parts = (digits.open_split(e, f) for f, e in expressions.items())
    return digits.CLASS_NAMES, *parts, digits.SHAPE
  directory = prepared.find(wanted.name, wanted.dir)
  builder, class_names = prepared.open_set(wanted.name, directory)
  parts = (
    prepared.open_split(builder, wanted.name, e, f)
    for f, e in expressions.items()
  )
  return class_names, *parts, tuple(builder.info.features['image'].shape)


def _check(wanted: Wanted, opened: Opened) -> None:
  """Compares what is there with what the config says, all at once.

  Raises:
    UserError: naming every field that is wrong, and what to give instead.
  """
  found = {'classes': len(opened.class_names), 'train_size': opened.train_size}
  notes = {'train_size': f' in data.train_split = {wanted.train_split!r}'}
  if wanted.validation_size:
    notes['train_size'] += (
      f' after holding out data.validation_size = {wanted.validation_size}'
    )
  if wanted.image_shape:
    image = opened.train.__getitems__([0])[0]['image']
    if wanted.crop == 'none':
      shape = crops.area_averaged(image, wanted.resize).shape
    else:
      shape = (*wanted.image_shape[:2], image.shape[-1])
    found['image_shape'] = tuple(shape)
    if wanted.resize:
      notes['image_shape'] = f' with data.resize = {wanted.resize}'
  wrong = [
    field
    for field, value in found.items()
    if getattr(wanted, field) not in (None, value)
  ]
  if not wrong:
    return
  said = ', '.join(
    f'data.{f} = {getattr(wanted, f)}, but {wanted.title} has {found[f]}'
    f'{notes.get(f, "")}'
    for f in wrong
  )
  raise UserError(f'{said}; to take it as it is: {as_flags(found, wrong)}')


def as_flags(values: dict[str, Any], fields: list[str]) -> str:
  """Fields of `config.data` as a shell takes them.

  Args:
    values: numbers, and tuples of numbers.
    fields: which of them.
  """
  texts = {f: str(values[f]).replace(' ', '') for f in fields}
  return ' '.join(
    f"--config.data.{f}='{t}'" if '(' in t else f'--config.data.{f}={t}'
    for f, t in texts.items()
  )
