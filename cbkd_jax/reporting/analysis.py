"""Teacher and student on the test split: where they differ."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from scipy import special

from cbkd_jax import finished_run
from cbkd_jax.data import Split, Streamed
from cbkd_jax.errors import UserError
from cbkd_jax.reporting import block_costs, cka
from cbkd_jax.reporting.block_costs import BlockFigures
from cbkd_jax.reporting.record import Record

_WORST = 6  # classes, and images of each


@dataclasses.dataclass(frozen=True)
class WorstClass:
  """A class that the student knows less well than the teacher.

  Attributes:
    label: the class.
    name: what the data set calls it.
    teacher_accuracy: the teacher's on the class's examples.
    student_accuracy: the student's.
    examples: of the class in the test split.
    images: uint8 `[k, height, width, channels]`, as the data set has them:
      examples that the teacher gets right and the student wrong, those first
      of whose wrong class the student is most certain; at most six, none if
      there is none.
    predicted: the names of the classes that the student takes them for.
  """

  label: int
  name: str
  teacher_accuracy: float
  student_accuracy: float
  examples: int
  images: np.ndarray
  predicted: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Analysis:
  """What a run of both networks on the test split shows.

  Attributes:
    class_names: by label.
    labels: int `[n]`.
    teacher_predictions: int `[n]`.
    student_predictions: int `[n]`.
    confusion: int `[classes, classes]`, examples by label (row) and the
      student's prediction (column).
    teacher_confusion: the same of the teacher.
    agreement: the fraction of equal predictions.
    class_examples: int `[classes]`.
    teacher_class_accuracy: float `[classes]`, NaN for a class without
      examples.
    student_class_accuracy: the same of the student.
    worst: the classes with the largest loss of accuracy, the largest first,
      at most six; none that loses nothing.
    cka: similarity of the features at each cut and of the pooled vectors:
      ('block 0', 0.98), ..., ('pooled', 0.95); see `cka`.
    cka_examples: of how many test images.
    blocks: what each block costs, the head last.
    batch_size: examples in a batch of the blocks' time and memory.
    device: what they were measured on.
  """

  class_names: tuple[str, ...]
  labels: np.ndarray
  teacher_predictions: np.ndarray
  student_predictions: np.ndarray
  confusion: np.ndarray
  teacher_confusion: np.ndarray
  agreement: float
  class_examples: np.ndarray
  teacher_class_accuracy: np.ndarray
  student_class_accuracy: np.ndarray
  worst: tuple[WorstClass, ...]
  cka: tuple[tuple[str, float], ...]
  cka_examples: int
  blocks: tuple[BlockFigures, ...]
  batch_size: int
  device: str


def analyse(
  record: Record,
  *,
  data_dir: str | None = None,
  examples: int | None = None,
  cka_examples: int = 1000,
  batch_size: int = block_costs.BATCH,
) -> Analysis:
  """Runs both networks of a finished run on the test split.

  Args:
    record: the run's.
    data_dir: where the data are, as data.dir; default the config's.
    examples: of the test split at most so many, the same ones every time;
      None: all.
    cka_examples: likewise, of these, for the similarity of features.
    batch_size: examples in a batch of the blocks' time and memory.

  Raises:
    UserError: the run is not finished, or its teacher, student or data can't
      be read; one line that says which.
  """
  run = finished_run.load(record.directory, data_dir)
  dataset = run.dataset
  if examples is not None and examples < len(dataset.test):
    test = Some.of(dataset.test, examples)
    run = run._replace(dataset=dataclasses.replace(dataset, test=test))
  logits, labels = finished_run.predict(run, run.dataset.test)
  if not all(np.isfinite(values).all() for values in logits.values()):
    raise UserError(f'{record.directory}: logits are not finite')
  similar, similar_examples = cka.compare(run, cka_examples)
  return Analysis(
    **compare(logits, labels, dataset.class_names),
    worst=worst(logits, labels, dataset.class_names, run.dataset.test),
    cka=tuple(similar.items()),
    cka_examples=similar_examples,
    blocks=block_costs.measure(run, batch_size),
    batch_size=batch_size,
    device=jax.local_devices()[0].device_kind,
  )


@dataclasses.dataclass(frozen=True)
class Some:
  """Examples of a split, as a split.

  Attributes:
    split: all of them.
    chosen: positions in it, increasing.
  """

  split: Split | Streamed
  chosen: np.ndarray

  @classmethod
  def of(cls, split: Split | Streamed, examples: int) -> 'Some':
    """Drawn ones: a split may be sorted by class."""
    drawn = np.random.default_rng(0).permutation(len(split))[:examples]
    return cls(split, np.sort(drawn))

  def __len__(self) -> int:
    return len(self.chosen)

  def batches(
    self, positions: Iterable[np.ndarray]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As those of a split."""
    return self.split.batches([self.chosen[p] for p in positions])


def compare(
  logits: Mapping[str, np.ndarray],
  labels: np.ndarray,
  class_names: Sequence[str],
) -> dict[str, Any]:
  """The fields of `Analysis` that follow from predictions.

  Args:
    logits: of 'teacher' and 'student', `[n, classes]`.
    labels: `[n]`.
    class_names: by label.
  """
  teacher, student = (logits[n].argmax(-1) for n in ('teacher', 'student'))
  matrices = [
    confusion(labels, predicted, len(class_names))
    for predicted in (teacher, student)
  ]
  examples = matrices[0].sum(1)
  with np.errstate(invalid='ignore'):  # 0 / 0 where a class has no examples
    accuracies = [matrix.diagonal() / examples for matrix in matrices]
  return {
    'class_names': tuple(class_names),
    'labels': labels,
    'teacher_predictions': teacher,
    'student_predictions': student,
    'confusion': matrices[1],
    'teacher_confusion': matrices[0],
    'agreement': float(np.mean(teacher == student)),
    'class_examples': examples,
    'teacher_class_accuracy': accuracies[0],
    'student_class_accuracy': accuracies[1],
  }


def confusion(
  labels: np.ndarray, predicted: np.ndarray, classes: int
) -> np.ndarray:
  """Examples by label (row) and prediction (column), int `[classes, classes]`.

  Args:
    labels: `[n]`.
    predicted: `[n]`.
    classes: how many there are.
  """
  counts = np.bincount(labels * classes + predicted, minlength=classes**2)
  return counts.reshape(classes, classes)


def worst(
  logits: Mapping[str, np.ndarray],
  labels: np.ndarray,
  class_names: Sequence[str],
  split: Split | Streamed | Some,
) -> tuple[WorstClass, ...]:
  """The classes that the student has lost most of, with images.

  Args:
    logits: of 'teacher' and 'student', `[n, classes]`.
    labels: `[n]`.
    class_names: by label.
    split: the examples.
  """
  found = compare(logits, labels, class_names)
  teacher, student = (
    found[f'{name}_class_accuracy'] for name in ('teacher', 'student')
  )
  lost = np.nan_to_num(teacher - student)
  said = found['student_predictions']
  certainty = special.softmax(logits['student'], axis=-1).max(-1)
  differ = (found['teacher_predictions'] == labels) & (said != labels)
  classes = []
  for label in np.argsort(-lost, kind='stable')[:_WORST]:
    if lost[label] <= 0:
      break
    (own,) = np.nonzero(differ & (labels == label))
    own = own[np.argsort(-certainty[own], kind='stable')][:_WORST]
    ((images, _),) = split.batches([own])
    classes.append(
      WorstClass(
        label=int(label),
        name=class_names[label],
        teacher_accuracy=float(teacher[label]),
        student_accuracy=float(student[label]),
        examples=int(found['class_examples'][label]),
        images=images,
        predicted=tuple(class_names[i] for i in said[own]),
      )
    )
  return tuple(classes)
