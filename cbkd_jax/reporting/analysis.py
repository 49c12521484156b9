"""Teacher and student on the test split: where they differ."""

import dataclasses

import numpy as np

from cbkd_jax.reporting.block_costs import BlockFigures


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
