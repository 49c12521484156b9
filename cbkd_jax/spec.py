"""What is static in a phase's step."""

import dataclasses

import optax

from cbkd_jax import blocks
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.objectives import Objective
from cbkd_jax.optimizer import make_optimizer
from cbkd_jax.replicas import AXIS
from cbkd_jax.stages import Training
from cbkd_jax.storage import Layout


@dataclasses.dataclass(frozen=True)
class StepSpec:
  """What is static in a stage's step; equal specs share one program.

  Attributes:
    student: the stage's network (a hybrid, or the folded student).
    teacher: the teacher's network; None where the objective has no use for
      one.
    objective: what is minimised.
    training: optimiser and schedule.
    trained: per part of the student, whether it trains.
    shared: leading parts that are the teacher's own and frozen.
    augmentation: of the images.
    image_shape: (height, width, channels).
    sync_batch_norm: whether batch statistics are those of the global batch.
    fixed_views: how many augmentations of each image the phase has; None: a
      new one in every step.
    cache: how the outputs that the phase can't change are kept; None: they
      are computed in every step. Needs `fixed_views`.
    micro_batches: parts into which a replica divides its share of a batch.
    remat: whether the backward pass recomputes what is inside of units.
    axis: the replicas' axis; None where a step sees the whole batch.
  """

  student: Network
  teacher: Network | None
  objective: Objective
  training: Training
  trained: tuple[bool, ...]
  shared: int
  augmentation: Augmentation
  image_shape: tuple[int, int, int]
  sync_batch_norm: bool = True
  fixed_views: int | None = None
  cache: Layout | None = None
  micro_batches: int = 1
  remat: bool = False
  axis: str | None = AXIS

  @property
  def frozen(self) -> int:
    """Leading parts that do not train: their outputs are constants."""
    return (*self.trained, True).index(True)

  def shapes(self) -> tuple[Variables, Variables | None]:
    """Shapes of the student's variables, and of the teacher's."""
    student = blocks.shapes(self.student, self.image_shape)
    if self.teacher is None:
      return student, None
    return student, blocks.shapes(self.teacher, self.image_shape)

  def unshared(self, teacher: Variables | None) -> Variables | None:
    """What a step needs of the teacher: the shared parts are in the state.

    Args:
      teacher: all of its variables, or their shapes.

    Returns:
      The same without the shared parts; None without a teacher.
    """
    if self.teacher is None:
      return None
    return Variables(
      *((None,) * self.shared + trees[self.shared :] for trees in teacher)
    )

  @property
  def tx(self) -> optax.GradientTransformation:
    rates = self.objective.learning_rates()
    return make_optimizer(self.training, (*self.trained, True), rates)
