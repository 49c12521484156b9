"""Whether a file says of test images what the network says of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from cbkd_jax import data

# Of the largest logit: float32 rounding of a deep network in another order.
_TOLERANCE = 1e-4
# What int8 may cost, as a fraction of the test images.
_LOST_ACCURACY = 0.02
# Most sets' whole test splits; one that is streamed has large images.
_EXAMPLES, _STREAMED_EXAMPLES = 10_000, 1_000
_BATCH = 100


class Unfaithful(Exception):
  """A file that does not do what the network does."""


@dataclasses.dataclass(frozen=True)
class Reference:
  """What files are compared with.

  Attributes:
    of: what the network is.
    dataset: whose images they are.
    split: likewise.
    images: uint8 `[examples, height, width, channels]`.
    labels: theirs.
    logits: of the network that the run has saved, float64.
  """

  of: str
  dataset: str
  split: str
  images: np.ndarray
  labels: np.ndarray
  logits: np.ndarray


def chosen(
  split: data.Split | data.Streamed, examples: int | None
) -> tuple[np.ndarray, np.ndarray]:
  """The images that files are run on, and their labels.

  Args:
    split: of the test images.
    examples: how many, at most; None: 10,000, or 1,000 that are streamed.
  """
  streams = isinstance(split, data.Streamed)
  return spread(
    split, examples or (_STREAMED_EXAMPLES if streams else _EXAMPLES)
  )


def spread(
  split: data.Split | data.Streamed, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """`count` images and labels from all over a split, which may be sorted."""
  count = min(count, len(split))
  positions = np.arange(count) * len(split) // count
  ((images, labels),) = split.batches([positions])
  return images, labels


def logits_of(
  run: Callable[[np.ndarray], np.ndarray], images: np.ndarray
) -> np.ndarray:
  """The logits of all images, in batches of two sizes.

  The first image comes alone: a file must take any number. The last batch is
  filled up with its last image: nothing is compiled for a rest.
  """
  found = [run(images[:1])]
  for start in range(1, len(images), _BATCH):
    positions = np.arange(start, start + _BATCH)
    found.append(run(images[np.minimum(positions, len(images) - 1)]))
  return np.concatenate(found)[: len(images)].astype(np.float64)


def judge(
  reference: Reference,
  logits: np.ndarray,
  *,
  int8: bool,
  tolerance: float | None,
) -> dict[str, Any]:
  """Compares what a file says with what the network says.

  Args:
    reference: holds the network's logits.
    logits: the file's, `[examples, classes]`.
    int8: whether it is the accuracy that counts, not the logits.
    tolerance: the largest difference of a logit, as a share of the largest
      logit; of int8 the loss of accuracy, as a fraction. None: 1e-4, or 0.02.

  Returns:
    'accuracy' and 'check', for the JSON.

  Raises:
    Unfaithful: they differ too much.
  """
  before, after = (
    float(np.mean(x.argmax(-1) == reference.labels))
    for x in (reference.logits, logits)
  )
  largest = float(np.abs(reference.logits).max())
  difference = float(np.abs(logits - reference.logits).max())
  agreement = float(np.mean(logits.argmax(-1) == reference.logits.argmax(-1)))
  if int8:
    tolerance = _LOST_ACCURACY if tolerance is None else tolerance
    of, found, most = 'lost accuracy', before - after, tolerance
  else:
    tolerance = _TOLERANCE if tolerance is None else tolerance
    of, found = 'max_logit_difference / largest_logit', difference
    most = tolerance * largest
  # What is not finite is no less than anything.
  if not (found <= most and np.isfinite(logits).all()):
    raise Unfaithful(
      f'differs from the {reference.of} by {difference:.3g} at logits up to '
      f'{largest:.3g}, accuracy {after:.4f} for {before:.4f}; '
      f'--tolerance={tolerance:g} ({of}) allows less'
    )
  return {
    'accuracy': {
      'data': reference.dataset,
      'split': reference.split,
      'examples': len(reference.labels),
      'before': before,
      'after': after,
    },
    'check': {
      'images': len(reference.labels),
      'top1_agreement': agreement,
      'max_logit_difference': difference,
      'largest_logit': largest,
      'tolerance': tolerance,
      'tolerance_of': of,
    },
  }
