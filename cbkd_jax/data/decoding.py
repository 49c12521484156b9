"""Image files of whatever kind as arrays of the channels that are wanted."""

import numpy as np

from cbkd_jax.errors import UserError

# What OpenCV decodes to 8 bits, in all its builds.
SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.png', '.bmp', '.webp', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm'),
)


def decode(content: bytes, channels: int | None, where: str) -> np.ndarray:
  """An image file's pixels.

  Upright, as EXIF says. Palettes and CMYK become RGB; of 16 bits the upper 8
  are kept; transparency is dropped, as PIL's `convert('RGB')` does; of an
  animation the first frame is taken.

  Args:
    content: the file's.
    channels: 3 (grey is repeated) or 1 (colours become their luma); None: 3.
    where: what the error names.

  Returns:
    uint8 [height, width, channels], RGB.

  Raises:
    UserError: it is no image, damaged, or of floats.
  """
  import cv2

  # It would say on stderr what the error says.
  cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
  image = None
  if content:
    try:
      image = cv2.imdecode(
        np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB
      )
    except cv2.error:  # more pixels than it allows
      image = None
  if image is None:
    raise UserError(
      f'{where}: no image of 8 or 16 bits that OpenCV can read; if it is '
      'damaged, take it away'
    )
  return with_channels(image, channels, where)


def with_channels(
  image: np.ndarray, channels: int | None, where: str
) -> np.ndarray:
  """The image in grey or in colours.

  Args:
    image: uint8 [height, width, any channels].
    channels: that are wanted; None: those that it has.
    where: what the error names.

  Returns:
    uint8 [height, width, channels]: grey is repeated, of colours the luma of
    ITU-R BT.601 is taken.

  Raises:
    UserError: other numbers of channels differ.
  """
  found = image.shape[-1]
  if channels in (None, found):
    return image
  if (found, channels) == (1, 3):
    return np.repeat(image, 3, axis=-1)
  if (found, channels) == (3, 1):
    import cv2

    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
  raise UserError(
    f'data.image_shape asks for {channels} channel(s), but {where} has '
    f'{found}; only 1 and 3 are made of each other'
  )
