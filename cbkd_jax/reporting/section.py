"""One run's part of a report: what is known of it, and its figures."""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from cbkd_jax.errors import UserError
from cbkd_jax.reporting import (
  accuracy_figure,
  analysis,
  cka_figure,
  classes_figure,
  confusion_figures,
  costs_figure,
  groups,
  losses_figure,
  network_figure,
  planned,
)
from cbkd_jax.reporting.analysis import Analysis
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.planned import Plan
from cbkd_jax.reporting.record import Record


@dataclasses.dataclass(frozen=True)
class Section:
  """A run in a report.

  Attributes:
    record: what its workdir says.
    plan: its stages and blocks; None where they can't be known here.
    analysis: teacher and student on the test split, where that was run.
    missing: why something is not shown, a sentence each.
    figures: what can be drawn, in the order in which they are shown.
  """

  record: Record
  plan: Plan | None
  analysis: Analysis | None
  missing: tuple[str, ...]
  figures: tuple[Drawn, ...]

  @property
  def key(self) -> str:
    """Its name as a part of files' names; other runs may have the same."""
    return re.sub(r'[^A-Za-z0-9.]+', '_', self.record.name).strip('_')


def section(
  record: Record,
  *,
  analysed: bool = True,
  data_dir: str | None = None,
  examples: int | None = None,
) -> Section:
  """All that is to be said of a run.

  Args:
    record: what its workdir says.
    analysed: whether to run its networks on the test split.
    data_dir: where the data are, as data.dir; default the config's.
    examples: of the test split at most so many.
  """
  plan, found, missing = None, None, []
  try:
    plan = planned.plan(record)
  except UserError as error:
    missing.append(f'The networks are not drawn: {error}.')
  if not record.finished:
    missing.append(
      'Teacher and student are not compared: there is no student before the '
      'run is finished.'
    )
  elif not analysed:
    missing.append('Teacher and student were not compared: --noanalysis.')
  else:
    try:
      found = analysis.analyse(record, data_dir=data_dir, examples=examples)
      if len(found.labels) < (total := record.summary['dataset']['test']):
        missing.append(
          f'Teacher and student are compared on {len(found.labels):,} of '
          f'{total:,} test images: --examples.'
        )
    except UserError as error:
      missing.append(f'Teacher and student are not compared: {error}.')
  return assemble(record, plan, found, tuple(missing))


def assemble(
  record: Record,
  plan: Plan | None,
  found: Analysis | None,
  missing: Sequence[str] = (),
) -> Section:
  """A section of what has been found."""
  figures: list[Drawn | None] = []
  if plan is not None:
    figures.append(network_figure.network(plan, accuracies(record)))
  figures.append(accuracy_figure.accuracy(groups.group([record])))
  figures.append(losses_figure.losses(record))
  if blocks := costs_figure.blocks_of(plan, found):
    figures.append(costs_figure.costs(blocks, _measured(found)))
  if found is not None:
    figures += [
      cka_figure.cka(found),
      confusion_figures.confusion(found),
      confusion_figures.confused(found),
      classes_figure.drops(found),
    ]
  return Section(
    record,
    plan,
    found,
    tuple(missing),
    tuple(figure for figure in figures if figure is not None),
  )


def _measured(found: Analysis | None) -> str:
  if found is None:
    return 'Counted from shapes; FLOPs by XLA, of the forward pass.'
  return (
    f'Forward pass in eval mode. Time (median) and memory of a batch of '
    f'{found.batch_size} on {found.device}, each block alone.'
  )


def accuracies(record: Record) -> Mapping[str, float]:
  """Of the phases that are done, by name."""
  return {phase['name']: phase['accuracy'] for phase in record.phases}
