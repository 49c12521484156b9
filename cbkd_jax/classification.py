"""Classes and probabilities of image files, by a student or an exported one."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
from scipy import special

from cbkd_jax import exported, finished_run, student
from cbkd_jax.data import image_files
from cbkd_jax.data.framing import Framing
from cbkd_jax.errors import UserError

_NAMED = 10  # files that can't be read, of many


@dataclass(frozen=True)
class Classifier:
  """A network with all that is needed to use it.

  Attributes:
    logits: from images, uint8 `[batch, height, width, channels]`, to
      `[batch, classes]`.
    framing: how any image becomes one of these.
    class_names: by label.
  """

  logits: Callable[[np.ndarray], Any]
  framing: Framing
  class_names: tuple[str, ...]


@dataclass(frozen=True)
class Prediction:
  """What an image shows.

  Attributes:
    image: its path.
    labels: the most probable ones first; of equals the lower one.
    class_names: theirs.
    probabilities: theirs, among all classes.
  """

  image: str
  labels: tuple[int, ...]
  class_names: tuple[str, ...]
  probabilities: tuple[float, ...]

  def as_json(self) -> dict[str, Any]:
    """Plain values."""
    rows = zip(self.labels, self.class_names, self.probabilities)
    return {
      'image': self.image,
      'predictions': [
        {'label': label, 'class': name, 'probability': probability}
        for label, name, probability in rows
      ],
    }


def of_workdir(directory: Path) -> Classifier:
  """The student of a finished run.

  Args:
    directory: the run's workdir; may be in a bucket.

  Raises:
    UserError: the run is not finished.
  """
  values = finished_run.read_config(directory)
  model = student.read_model(directory / 'student')
  return Classifier(
    student.load_student(directory),
    Framing.of(values['data']),
    tuple(model['class_names']),
  )


def of_file(path: Path) -> Classifier:
  """An exported network; the JSON beside it says all that a workdir would.

  Args:
    path: the file.

  Raises:
    UserError: it can't be read, or is not the one that the JSON is of.
  """
  found = exported.load(path)
  return Classifier(
    found.logits,
    Framing.from_json(found.info['input']['framing']),
    tuple(found.info['classes']),
  )


def classify(
  classifier: Classifier, paths: Sequence[str], *, top: int, batch_size: int
) -> Iterator[Prediction]:
  """Runs images through a network, a batch at a time.

  Args:
    classifier: the network.
    paths: of image files, at least one.
    top: classes of each image, at most.
    batch_size: images at a time, which bounds the memory.

  Yields:
    Each image's classes, in the order of the paths.

  Raises:
    UserError: after all others, naming the images that can't be read.
  """
  size, errors = min(batch_size, len(paths)), []
  for batch in image_files.read(paths, classifier.framing, size):
    errors += [read for read in batch if read.image is None]
    found = [read for read in batch if read.image is not None]
    if not found:
      continue
    # Filled up with the last one: a single shape is compiled.
    filled = [*found, *[found[-1]] * (size - len(found))]
    logits = classifier.logits(np.stack([read.image for read in filled]))
    for read, row in zip(found, np.asarray(logits, np.float64)):
      yield _prediction(read.path, row, classifier.class_names, top)
  if errors:
    raise _unreadable(errors, len(paths))


def _prediction(
  path: str, logits: np.ndarray, class_names: Sequence[str], top: int
) -> Prediction:
  labels = np.argsort(-logits, kind='stable')[:top].tolist()
  probabilities = special.softmax(logits)[labels]
  names = tuple(class_names[label] for label in labels)
  return Prediction(path, tuple(labels), names, tuple(probabilities.tolist()))


def _unreadable(errors: Sequence[image_files.Read], count: int) -> UserError:
  first, *others = errors
  if count == 1:
    return UserError(first.error)
  also = ', '.join(read.path for read in others[: _NAMED - 1])
  more = ', ...' if len(others) >= _NAMED else ''
  return UserError(
    f'{len(errors)} of {count} images left out: {first.error}'
    f'{"; likewise " if also else ""}{also}{more}'
  )


def show(found: Prediction, console: rich.console.Console) -> None:
  """Prints a block: the image's name, and a line for each class."""

  def say(text: str, style: str | None = None) -> None:
    # A name may be no UTF-8. What is too wide is for the terminal to wrap.
    text = text.encode(errors='surrogateescape').decode(errors='replace')
    console.print(
      text,
      style=style,
      markup=False,
      emoji=False,
      highlight=False,
      soft_wrap=True,
    )

  say(found.image, 'bold')
  for name, probability in zip(found.class_names, found.probabilities):
    say(f'  {probability:7.2%}  {name}')
