"""The interface of a distillation method."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError

# Everything a method may ask for in `needs`, and what it then gets.
AVAILABLE = {
  'labels': '[batch] the classes of the examples',
  'mixed': 'None, or where images are mixed with others ([batch] the classes '
  "of those, [] the own class's share)",
  'indices': '[batch] their positions in the train split',
  'keys': '[batch] a PRNG key per example, of this step and this term',
  'step': '[] steps taken in this phase',
  'epoch': '[] the epoch of the published schedule, see `published_epoch`',
  'train_labels': '[train_size] the classes of the whole train split',
  'teacher_head': 'map [batch, h, w, c] -> HeadOutput; frozen, eval mode',
  'teacher_classifier': 'pooled [batch, c] -> logits; frozen',
  'teacher_norms': 'per block (scale, bias) of the normalisation before the '
  "activation at its cut: the pre-activation's standard deviation and mean",
  'second_view': '(student View, teacher View) of the same examples, '
  'augmented a second time',
}

# The distillation literature trains on CIFAR for so many epochs; warm-ups and
# decays are published as epochs out of these.
PUBLISHED_EPOCHS = 240

# Options that several kinds of methods have, in the order in which they are
# written, behind a method's own.
_SHARED_OPTIONS = ('at', 'learning_rate', 'global_batch', 'regressor')


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is fixed while a phase trains, beyond the shapes of the views.

  Attributes:
    blocks: of either network.
    trained: the blocks that train.
    name: the phase's, for messages.
    steps: of the phase.
    batch_size: examples per step over all replicas.
    train_size: examples in the train split.
    replicas: how many share a batch.
    micro_batches: parts into which each divides its share.
    axis_name: of the replicas' axis; None outside of a step.
    preparing: whether this is the phase's pre-stage.
    prepares_blocks: whether that trains blocks.
  """

  blocks: int = 1
  trained: tuple[int, ...] = (0,)
  name: str = 'stage'
  steps: int = 1
  batch_size: int = 1
  train_size: int = 1
  replicas: int = 1
  micro_batches: int = 1
  axis_name: str | None = None
  preparing: bool = False
  prepares_blocks: bool = True

  @property
  def micro_batch(self) -> int:
    """Examples that the loss of one replica sees at once."""
    return self.batch_size // (self.replicas * self.micro_batches)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
  """A term of an objective; its dataclass fields are its options.

  Attributes:
    setting: of the phase, set by `Objective.bind`; not an option.
    name: in expressions, metrics and messages.
    paper: authors, title, venue.
    recipe: the published recipe as an expression; what the bare name means.
    knowledge: 'response' (logits), 'feature' or 'relation' (between examples
      or layers).
    needs: what `loss` takes beyond the two views, names of `AVAILABLE`.
    uses_teacher: whether `loss` looks at the teacher's view at all.
    predicts: whether the student's prediction needs the method's variables;
      it then has `student_head` and `head_variables`.
    prepares: what its pre-stage trains: 'variables' (its own alone), 'blocks'
      (the phase's blocks too, the head apart), or None if it has none.
    pre_fraction: the pre-stage's share of the phase's steps; an option where
      there is one.
  """

  setting: Setting = dataclasses.field(
    default=Setting(), repr=False, metadata={'is_option': False}
  )

  name: ClassVar[str]
  paper: ClassVar[str]
  recipe: ClassVar[str]
  knowledge: ClassVar[str] = 'response'
  needs: ClassVar[tuple[str, ...]] = ()
  uses_teacher: ClassVar[bool] = True
  predicts: ClassVar[bool] = False
  prepares: ClassVar[str | None] = None

  def __post_init__(self):
    # Mixins and methods check their options here and call super's.
    return

  @property
  def has_pre_stage(self) -> bool:
    """Whether a pre-stage comes before the phase."""
    return self.prepares is not None and self.pre_fraction > 0

  @classmethod
  def options(cls) -> dict[str, dataclasses.Field]:
    """The fields that an expression may set, by name, shared ones last.

    Returns:
      The fields, in the order in which an objective is written.
    """

    def position(field):
      shared = field.name in _SHARED_OPTIONS
      return _SHARED_OPTIONS.index(field.name) if shared else -1

    fields = sorted(dataclasses.fields(cls), key=position)
    return {f.name: f for f in fields if f.metadata.get('is_option', True)}

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    """Variables: 'params' are trained with the phase, 'state' is carried.

    Called on shapes too, before anything runs.

    Raises:
      UserError: the method can't work between these networks.
    """
    del rng, student_view, teacher_view
    return {}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    **needed: Any,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """(mean over this replica's examples, further metrics, new 'state')."""
    raise AssertionError(f'{type(self).__name__} defines no loss')

  def adopt(
    self, variables: dict[str, Any], previous: dict[str, Any]
  ) -> dict[str, Any]:
    """Initial variables, given those of the phase before.

    Args:
      variables: from `init`.
      previous: those at the end of the phase before, of the same method.

    Returns:
      What the phase begins with, shaped as `variables`.
    """
    del previous
    return variables

  def fail(self, option: str, allowed: str) -> None:
    """Refuses the value of an option.

    Args:
      option: its name.
      allowed: what it must be, in words.

    Raises:
      UserError: always.
    """
    value = getattr(self, option)
    raise UserError(f'{self.name}.{option} = {value!r}: must be {allowed}')

  def require_positive(self, *options: str) -> None:
    """Refuses numbers that are not finite and above 0."""
    for option in options:
      value = getattr(self, option)
      if not (value > 0 and math.isfinite(value)):
        self.fail(option, 'above 0')

  def require_from_zero(self, *options: str) -> None:
    """Refuses numbers that are not finite and at least 0."""
    for option in options:
      value = getattr(self, option)
      if not (value >= 0 and math.isfinite(value)):
        self.fail(option, 'at least 0')

  def require_fraction(self, *options: str) -> None:
    """Refuses numbers that are not in [0, 1)."""
    for option in options:
      if not 0 <= getattr(self, option) < 1:
        self.fail(option, 'from 0 to below 1')

  def require_choice(self, option: str, allowed: Collection[str]) -> None:
    """Refuses words that are not among `allowed`."""
    if getattr(self, option) not in allowed:
      self.fail(option, 'one of ' + ', '.join(map(repr, allowed)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchWise(Method):
  """A method that relates the examples of a batch to each other.

  Its loss sees this replica's examples, with `global_batch` those of all: the
  views (and `labels`, `indices`, `keys`, `second_view`) are gathered before.
  Of fewer than `least_examples` it is constant.
  """

  global_batch: bool = False

  least_examples: ClassVar[int] = 1

  @property
  def examples(self) -> int:
    """How many its loss sees at once."""
    replicas = self.setting.replicas if self.global_batch else 1
    return self.setting.micro_batch * replicas


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learned(Method):
  """A method with trained variables of its own.

  `learning_rate` is their peak rate, on the phase's schedule; None: the
  phase's own.
  """

  learning_rate: float | None = None

  def __post_init__(self):
    super().__post_init__()
    rate = self.learning_rate
    if rate is None:
      return
    if isinstance(rate, bool) or not isinstance(rate, int | float):
      self.fail('learning_rate', 'a number above 0 or None')
    self.require_positive('learning_rate')


def published_epoch(setting: Setting, step: jax.Array) -> jax.Array:
  """The epoch, from 1, at which the published schedule would be.

  A phase of at least 240 epochs counts its own. A shorter one runs through
  all 240 in its length, so that a warm-up of 20 epochs takes a twelfth of it.

  Args:
    setting: the phase.
    step: steps taken.

  Returns:
    A float32 scalar with an integer value.
  """
  epochs = setting.steps * setting.batch_size / setting.train_size
  per_step = max(epochs, PUBLISHED_EPOCHS) / setting.steps
  # The small addition keeps a product that should be whole from falling short.
  return 1.0 + jnp.floor(step * per_step + 1e-4)


def warm_up(epoch: jax.Array, warmup: float) -> jax.Array | float:
  """A weight's share: min(epoch / warmup, 1), or 1 if `warmup` is 0.

  Args:
    epoch: the published one, a scalar from 1.
    warmup: epochs until the weight is whole.

  Returns:
    A scalar.
  """
  return jnp.minimum(epoch / warmup, 1.0) if warmup else 1.0
