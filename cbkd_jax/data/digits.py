"""scikit-learn's handwritten digits: real images that come with a package.

1,797 grey images of 8x8 pixels, copies of the test set of UCI's "Optical
Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, 1998).
"""

import importlib.util
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
  # Importing scikit-learn would take longer than training a stage.
  package = importlib.util.find_spec('sklearn').submodule_search_locations[0]
  rows = np.loadtxt(f'{package}/datasets/data/digits.csv.gz', delimiter=',')
  # The pixels count 4x4 binary ones: 0 to 16.
  images = np.round(rows[:, :-1] * 255 / 16).astype(np.uint8)
  images = images.reshape(-1, *SHAPE)
  labels = rows[:, -1].astype(np.int32)
  train, test = _stratified(labels)
  return {
    'train': (images[train], labels[train]),
    'test': (images[test], labels[test]),
  }


def _stratified(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rows of train and test, with equal shares of every class.

  The same as scikit-learn's `train_test_split(stratify=labels,
  random_state=0)`: every run of every configuration has these two splits.
  """
  random = np.random.RandomState(0)
  counts = np.bincount(labels)
  of_train = _shares(counts, len(labels) - TEST_SIZE, random)
  of_test = _shares(counts - of_train, TEST_SIZE, random)
  train, test = [], []
  for label, (first, second) in enumerate(zip(of_train, of_test)):
    members = random.permutation(np.flatnonzero(labels == label))
    train.append(members[:first])
    test.append(members[first : first + second])
  return tuple(random.permutation(np.concatenate(x)) for x in (train, test))


def _shares(
  counts: np.ndarray, total: int, random: np.random.RandomState
) -> np.ndarray:
  """`total` divided like `counts`; the largest remainders are rounded up."""
  exact = counts / counts.sum() * total
  shares = np.floor(exact).astype(int)
  remainders = exact - shares
  for remainder in np.unique(remainders)[::-1]:
    missing = total - shares.sum()
    if not missing:
      break
    equal = np.flatnonzero(remainders == remainder)
    # Drawn even if it is all of them: what is drawn later depends on it.
    chosen = random.choice(equal, min(len(equal), missing), replace=False)
    shares[chosen] += 1
  return shares
