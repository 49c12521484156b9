"""The interface of a distillation method."""

import dataclasses
from typing import Any, ClassVar

import jax

from cbkd_jax.blocks import View

# Everything a method may ask for in `needs`.
AVAILABLE = ('labels', 'indices', 'step')


@dataclasses.dataclass(frozen=True)
class Method:
  """A term of an objective; its dataclass fields are its options.

  Attributes:
    needs: what `loss` takes beyond the two views, out of `AVAILABLE`: the
      examples' `labels` [batch], their `indices` in the train split [batch],
      the training `step` [].
    uses_teacher: whether `loss` looks at the teacher's view at all.
    recipe: the published recipe as an expression; what the bare name means.
    paper: authors, title, venue.
  """

  needs: ClassVar[tuple[str, ...]] = ()
  uses_teacher: ClassVar[bool] = True
  recipe: ClassVar[str]
  paper: ClassVar[str]

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    """Variables: 'params' are trained with the stage, 'state' is carried."""
    del rng, student_view, teacher_view
    return {}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
    **needed: jax.Array,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    """(mean over this replica's examples, further metrics, new 'state')."""
    raise AssertionError(f'{type(self).__name__} defines no loss')
