"""Sets of Hugging Face's `datasets` on disk; the network is never asked.

What `save_to_disk` has written, or a clone of a data set's repository with its
parquet files. Of those `datasets` keeps a copy of its own, in its cache
($HF_HOME).
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cbkd_jax.data import decoding
from cbkd_jax.data.wanted import Wanted
from cbkd_jax.errors import UserError


@dataclass(frozen=True)
class Rows:
  """A split.

  Attributes:
    rows: the `datasets.Dataset`, its images undecoded. It maps files into
      memory, and pickles as their paths.
    column: of the images.
    class_names: its classes.
    labels: int [n]; -1 where there is none.
    channels: that the images are to have; None: 3.
    place: of the split, for messages.
  """

  rows: Any
  column: str
  class_names: tuple[str, ...]
  labels: np.ndarray
  channels: int | None
  place: str

  def keys(self) -> list[bytes]:
    """The numbers of the examples."""
    return [str(i).encode() for i in range(len(self.labels))]

  def where(self, number: int) -> str:
    """A row of the set."""
    return f'{self.place}: row {number}'

  def images(self, numbers: Sequence[int]) -> list[np.ndarray]:
    """Reads images.

    Raises:
      UserError: naming a row whose image can't be read.
    """
    found = self.rows[list(numbers)][self.column]
    return [self._read(v, self.where(n)) for v, n in zip(found, numbers)]

  def _read(self, value: dict[str, Any] | None, where: str) -> np.ndarray:
    if value is None:
      raise UserError(f'{where}: has no image')
    content = value['bytes']
    if content is None:  # then it is in a file of its own
      try:
        content = Path(value['path']).read_bytes()
      except OSError as e:
        raise UserError(f'{where}: {value["path"]}: {e.strerror}') from None
    return decoding.decode(content, self.channels, where)


@dataclass(frozen=True)
class Set:
  """A set's splits by name."""

  found: dict[str, Any]
  wanted: Wanted

  @property
  def splits(self) -> tuple[str, ...]:
    return tuple(self.found)

  def open(self, split: str) -> Rows:
    """Reads a split's labels.

    Raises:
      UserError: it has no image and no label, or several.
    """
    import datasets

    rows, wanted = self.found[split], self.wanted
    place = f'{wanted.dir}: {split}'
    image = _column(rows, datasets.Image, 'image', wanted.image_column, place)
    label = _column(
      rows, datasets.ClassLabel, 'label', wanted.label_column, place
    )
    if not len(rows):
      raise UserError(f'{place}: is empty')
    values = rows.select_columns([label]).with_format('arrow')[:][label]
    labels = values.fill_null(-1).to_numpy().astype(np.int32)
    names = tuple(rows.features[label].names)
    rows = rows.select_columns([image])
    rows = rows.cast_column(image, datasets.Image(decode=False))
    channels = wanted.image_shape[-1] if wanted.image_shape else None
    return Rows(rows, image, names, labels, channels, place)


def open_set(wanted: Wanted) -> Set:
  """Opens a set; reads none of its rows.

  Args:
    wanted: its `dir` is the directory.

  Raises:
    UserError: `datasets` is not installed, or finds no set there.
  """
  directory = Path(wanted.dir).expanduser()
  if not directory.is_dir():
    raise UserError(f'data.dir = {wanted.dir!r}: no such directory')
  if importlib.util.find_spec('datasets') is None:
    raise UserError(
      f"data.name = {wanted.name!r}: needs Hugging Face's datasets; pip "
      "install 'datasets>=5.2,<6'"
    )
  # Read once, when it is imported.
  os.environ['HF_HUB_OFFLINE'] = os.environ['HF_DATASETS_OFFLINE'] = '1'
  import datasets

  datasets.disable_progress_bars()
  datasets.logging.set_verbosity_error()
  saved = ('dataset_dict.json', 'state.json')
  try:
    if any((directory / name).exists() for name in saved):
      found = datasets.load_from_disk(str(directory))
    elif any(directory.rglob('*.parquet')):
      found = datasets.load_dataset(str(directory))
    else:
      raise UserError(
        f'data.dir = {wanted.dir!r}: holds neither what save_to_disk writes '
        '(dataset_dict.json, state.json) nor parquet files'
      )
  except UserError:
    raise
  except Exception as e:  # each of its libraries has its own
    reason = ' '.join(str(e).split()) or type(e).__name__
    raise UserError(
      f'data.dir = {wanted.dir!r}: datasets cannot read it: {reason[:200]}'
    ) from e
  if isinstance(found, datasets.Dataset):
    found = {'train': found}
  return Set(dict(found), wanted)


def _column(rows: Any, kind: type, what: str, chosen: str, place: str) -> str:
  """The column of a kind of feature."""
  features = rows.features
  found = [name for name, of in features.items() if isinstance(of, kind)]
  if chosen in found:
    return chosen
  if len(found) == 1 and not chosen:
    return found[0]
  field = f'data.{what}_column = {chosen!r}'
  if found:
    raise UserError(
      f'{field}: must be one of {", ".join(found)}, which {place} has'
    )
  columns = ', '.join(f'{k} ({type(v).__name__})' for k, v in features.items())
  raise UserError(
    f'{field}: {place} must have a column of the type {kind.__name__}, but has '
    f'{columns}'
  )
