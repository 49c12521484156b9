"""Small image files and folders of them, for tests."""

import cv2
import numpy as np


def draw(seed, shape=(6, 4, 3)):
  """Random pixels, RGB or grey."""
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def png(image):
  """The image as a PNG; OpenCV writes BGR."""
  return cv2.imencode('.png', image[..., ::-1])[1].tobytes()


def write(directory, images):
  """Writes images, or bytes, at their paths in a directory."""
  for name, image in images.items():
    path = directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image if isinstance(image, bytes) else png(image))
  return directory


def tree(counts, shape=(6, 4, 3)):
  """Images by path: `{'train/cat': 3}` are three, 'train/cat/0.png', ..."""
  return {
    f'{folder}/{i}.png': draw([i, *folder.encode()], shape)
    for folder, count in counts.items()
    for i in range(count)
  }
