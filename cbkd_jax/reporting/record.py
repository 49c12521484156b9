"""What the files of a workdir say of a run, finished or not."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class Record:
  """A run as its workdir tells it; nothing is computed.

  Attributes:
    directory: the workdir.
    name: short, for figures and tables; of several records no two are alike.
    config: every field, as nested plain values; what an older version lacks
      is default.
    summary: what summary.json holds; None while the run is not finished.
    metrics: the rows of metrics.jsonl, in their order. Each has 'stage' (the
      phase: 'teacher', 'stage_1', ..., 'thaw'; 'stage_1_pre' where a method
      prepares) and 'step' (taken in the phase). Rows of training have
      'examples', 'loss', 'accuracy' (of the batch), 'grad_norm',
      'learning_rate' and each term of the objective by its key ('ce', 'kd'):
      *unweighted*, so 'loss' is their sum with the expression's weights. What
      a term logs beside its value is 'term/name'. The last row of a phase has
      'test_accuracy', 'test_cross_entropy', in all phases but the teacher's
      'test_agreement' and 'test_kl_to_teacher', with more than ten classes
      'test_top_5_accuracy', and the same of a validation slice, as
      'validation_...'.
    phases: the results of the phases that are done, in the order in which
      they are run, the teacher first: 'name', 'steps', 'accuracy',
      'cross_entropy', 'loss' (the last step's), 'seconds', 'compile_seconds',
      'examples_per_second', 'warning' (None or a line), but for the teacher
      'agreement', 'kl_to_teacher', and 'trained_blocks' where the run is
      finished.
    finished: whether the run is.
    command: the command that the run was begun with; each different one that
      it was continued with on a line of its own. None: an older version's run,
      or one that no command has begun.
  """

  directory: Path
  name: str
  config: Mapping[str, Any]
  summary: Mapping[str, Any] | None
  metrics: Sequence[Mapping[str, Any]]
  phases: Sequence[Mapping[str, Any]]
  finished: bool
  command: str | None

  @property
  def done(self) -> tuple[str, ...]:
    """The names of the phases that are done."""
    return tuple(phase['name'] for phase in self.phases)

  @property
  def versions(self) -> Mapping[str, str] | None:
    """Of Python and libraries, by name; None while it is not finished."""
    return self.summary and self.summary['versions']
