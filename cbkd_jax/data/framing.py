"""How an image of any kind becomes what a network takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cbkd_jax.data import crops, decoding


@dataclass(frozen=True)
class Framing:
  """What evaluation does with the images of a run's data, for any others.

  Attributes:
    image_shape: (height, width, channels) that the network takes.
    centre: of the largest central part in the network's proportions, the share
      of each side that is scaled to the network's size; None: the whole image
      is, whatever its proportions.
  """

  image_shape: tuple[int, int, int]
  centre: float | None

  @classmethod
  def of(cls, fields: Mapping[str, Any]) -> 'Framing':
    """What a run does.

    Args:
      fields: its `config.data`, as plain values.
    """
    cropped = fields['crop'] != 'none'
    return cls(tuple(fields['image_shape']), crops.CENTRE if cropped else None)

  @classmethod
  def from_json(cls, found: Mapping[str, Any]) -> 'Framing':
    """What `as_json` has written."""
    return cls(tuple(found['image_shape']), found['centre'])

  def as_json(self) -> dict[str, Any]:
    """Plain values, with a sentence for who has none of this code."""
    height, width, channels = self.image_shape
    part = 'the whole image'
    if self.centre is not None:
      part = (
        f'the centre, {self.centre:g} of the largest part of the proportions '
        f'{height}:{width} on each side,'
      )
    colours = 'grey is repeated' if channels == 3 else 'luma of ITU-R BT.601'
    return {
      'image_shape': list(self.image_shape),
      'centre': self.centre,
      'description': (
        f'upright as EXIF says, {"RGB" if channels == 3 else "grey"} '
        f'({colours}); {part} is scaled to {height}x{width}, by averages of '
        'areas where that shrinks both sides, else bilinearly'
      ),
    }

  def read(self, content: bytes, where: str) -> np.ndarray:
    """An image file's pixels as the network takes them.

    Args:
      content: the file's.
      where: what the error names.

    Returns:
      uint8 [height, width, channels].

    Raises:
      UserError: it is no image, or damaged.
    """
    channels = self.image_shape[-1]
    return self.frame(decoding.decode(content, channels, where))

  def frame(self, image: np.ndarray) -> np.ndarray:
    """An image at the network's size; one that has it, whole, is unchanged.

    Args:
      image: uint8 [rows, columns, channels].

    Returns:
      uint8 [height, width, channels].
    """
    height, width, _ = self.image_shape
    rows, columns = image.shape[:2]
    box = 0, 0, rows, columns
    if self.centre is not None:
      box = crops.central_box(rows, columns, height, width, self.centre)
    return crops.cut(image, box, height, width)
