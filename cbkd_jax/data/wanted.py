"""Which data set is wanted, and what it must turn out to be."""

import dataclasses
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

# Sets that a user has in a place of his own: data.dir is what tells them apart.
OWN = ('folder', 'npz', 'hf')


@dataclasses.dataclass(frozen=True)
class Wanted:
  """The fields of `config.data` that say which images there are.

  Attributes:
    name: 'digits'; 'folder', 'npz' or 'hf', see `own`; or a prepared TFDS set:
      'cifar10', 'name/config', 'name:version', the highest prepared version
      where none is given.
    dir: where prepared sets are; '': $TFDS_DATA_DIR, else
      ~/tensorflow_datasets. For 'folder', 'npz' and 'hf' the set itself.
    train_split: a split, or a slice of one: 'train[:5000]', 'train[:80%]'.
    test_split: likewise.
    image_column: of a set with several image columns ('hf'), the one to take.
    label_column: likewise.
    validation_size: the last so many training examples are held out.
    resize: images are area-averaged to resize x resize pixels; 0: not.
    crop: for streams: 'none', or 'random_resized', see `Streamed`.
    crop_area: the least area of a random crop, as a fraction of the image's.
    workers: for streams: processes that read; 0: threads of this process.
    classes: what the number of classes must be; None: anything.
    image_shape: likewise (height, width, channels), after resizing or
      cropping. Own images are given so many channels; None: those they have.
    train_size: likewise the training examples that are left after holding out
      `validation_size`.
  """

  name: str
  dir: str = ''
  train_split: str = 'train'
  test_split: str = 'test'
  image_column: str = ''
  label_column: str = ''
  validation_size: int = 0
  resize: int = 0
  crop: str = 'none'
  crop_area: float = 0.08
  workers: int = 0
  classes: int | None = None
  image_shape: tuple[int, int, int] | None = None
  train_size: int | None = None

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> 'Wanted':
    """What `config.data` asks for.

    Args:
      fields: the config's, as plain values; those of other matters are not
        looked at.
    """
    chosen = {f.name: fields[f.name] for f in dataclasses.fields(cls)}
    return cls(**{**chosen, 'image_shape': tuple(fields['image_shape'])})

  @property
  def title(self) -> str:
    """What messages call the set."""
    return f'{self.name} {self.dir}' if self.name in OWN else self.name

  @property
  def public_name(self) -> str:
    """What files for others call the set: they don't tell where it is."""
    own = PurePath(self.dir).name if self.name in OWN else ''
    return own or self.name
