"""scikit-learn's handwritten digits: real images that come with a package.

1,797 grey images of 8x8 pixels, copies of the test set of UCI's "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np

from cbkd_jax.data import splits

CLASS_NAMES = tuple('0123456789')
SHAPE = (8, 8, 1)
TEST_SIZE = 360


@dataclass(frozen=True)
class Source:
  """Records by number, as TFDS's data sources give them."""

  images: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def __getitems__(self, ids: list[int]) -> list[dict]:
    return [{'image': self.images[i], 'label': self.labels[i]} for i in ids]


def open_split(expression: str, field: str) -> Source:
  """The examples of a split expression.

  Args:
    expression: 'train' (1,437 examples) or 'test' (360), or a slice of one as
      TFDS writes it: 'train[:100]', 'train[-20%:]'.
    field: the config field that errors name.

  Returns:
    Its records: images uint8 [8, 8, 1] and labels.

  Raises:
    UserError: malformed, out of range, or empty.
  """
  found = _splits()
  part = splits.parse(expression, field, 'digits', tuple(found))
  images, labels = found[part.split]
  chosen = part.of(len(labels))
  return Source(images[chosen], labels[chosen])


@cache
def _splits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  from sklearn.datasets import load_digits
  from sklearn.model_selection import train_test_split

  raw = load_digits()
  # The pixels count 4x4 binary ones: 0 to 16.
  images = np.round(raw.images * 255 / 16).astype(np.uint8)[..., None]
  labels = raw.target.astype(np.int32)
  # Constant seed: every run of every configuration has the same two splits.
  train, test = train_test_split(
    np.arange(len(labels)),
    test_size=TEST_SIZE,
    stratify=labels,
    shuffle=True,
    random_state=0,
  )
  return {
    'train': (images[train], labels[train]),
    'test': (images[test], labels[test]),
  }
