"""Images of a data set, small enough to stand in a page."""

import base64

import cv2
import numpy as np

_MOST = 112  # pixels of a side
PIXELATED = 64  # a smaller side than this is shown as squares, not blurred


def data_uri(image: np.ndarray) -> str:
  """The image as `data:image/png;base64,...`.

  Args:
    image: uint8 `[height, width, channels]`; of other than one or three
      channels the mean is shown.
  """
  if image.shape[-1] == 3:
    image = image[..., ::-1]  # OpenCV's order
  else:
    image = image.mean(-1).round().astype(np.uint8)
  scale = _MOST / max(image.shape[:2])
  if scale < 1:
    size = tuple(max(1, round(scale * n)) for n in image.shape[1::-1])
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
  _, encoded = cv2.imencode('.png', image)
  return f'data:image/png;base64,{base64.b64encode(encoded).decode()}'
