"""From images of any size to images of one size, by NumPy and OpenCV."""

import math

import numpy as np

# As is usual for ImageNet: ratios of a random crop's sides, how often one is
# drawn that fits, and the share of the shorter side that evaluation looks at.
_LOG_RATIOS = math.log(3 / 4), math.log(4 / 3)
_ATTEMPTS = 10
CENTRE = 0.875

# The sampler's purposes are 0 and 1.
_PURPOSE = 2

Box = tuple[int, int, int, int]  # top, left, height, width, in pixels


def area_averaged(image: np.ndarray, side: int) -> np.ndarray:
  """The image at `side` x `side` pixels; 0: as it is."""
  if not side or image.shape[:2] == (side, side):
    return image
  return _resized(image, side, side)


def random_box(
  seed: int, position: int, height: int, width: int, least_area: float
) -> Box:
  """A random part of an image, as torchvision's RandomResizedCrop draws it.

  A pure function of its arguments: whichever process draws it and whatever
  was drawn before, it is the same.

  Szegedy et al., Going Deeper with Convolutions, CVPR 2015.

  Args:
    seed: the stream's.
    position: the example's in the stream, over all steps.
    height: of the image, in pixels.
    width: likewise.
    least_area: of the part, as a fraction of the image's; the most is 1.

  Returns:
    The part; its sides are to each other as 3:4 to 4:3, unless none of ten
    draws fits into the image.
  """
  key = np.array([seed, position], np.uint64)
  counter = np.array([0, 0, 0, _PURPOSE], np.uint64)
  random = np.random.Generator(np.random.Philox(key=key, counter=counter))
  for _ in range(_ATTEMPTS):
    area = height * width * random.uniform(least_area, 1)
    ratio = math.exp(random.uniform(*_LOG_RATIOS))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      top, left = random.integers(0, [height - h + 1, width - w + 1])
      return int(top), int(left), h, w
  # The largest central part of an allowed ratio.
  low, high = (math.exp(r) for r in _LOG_RATIOS)
  h = min(height, max(1, round(width / low)))
  w = min(width, max(1, round(height * high)))
  return (height - h) // 2, (width - w) // 2, h, w


def central_box(
  height: int,
  width: int,
  target_height: int,
  target_width: int,
  share: float = CENTRE,
) -> Box:
  """What evaluation looks at: the centre, in the target's proportions.

  Scaling it to the target is scaling the image until it exceeds the target by
  1 / `share` and cutting out the centre, in one resampling.

  Args:
    height: of the image, in pixels.
    width: likewise.
    target_height: of the image that is to be.
    target_width: likewise.
    share: of the largest such part, on each side.
  """
  scale = share * min(height / target_height, width / target_width)
  h = max(1, round(scale * target_height))
  w = max(1, round(scale * target_width))
  return (height - h) // 2, (width - w) // 2, h, w


def cut(image: np.ndarray, box: Box, height: int, width: int) -> np.ndarray:
  """A part of an image, scaled.

  Args:
    image: uint8 [rows, columns, channels].
    box: the part.
    height: to scale it to, in pixels.
    width: likewise.

  Returns:
    uint8 [height, width, channels].
  """
  top, left, h, w = box
  part = image[top : top + h, left : left + w]
  return part if (h, w) == (height, width) else _resized(part, height, width)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
  import cv2

  # Averages of areas shrink without aliasing; enlarged by them, an image
  # would be blocks.
  shrinks = height <= image.shape[0] and width <= image.shape[1]
  how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
  # OpenCV drops a single channel.
  return cv2.resize(image, (width, height), interpolation=how).reshape(
    height, width, image.shape[2]
  )
