"""A report's files: the page, the figures, the model card."""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import rich.console

from cbkd_jax import buckets
from cbkd_jax.errors import UserError
from cbkd_jax.reporting import (
  accuracy_figure,
  card,
  page,
  record,
  runs_figure,
  tables,
)
from cbkd_jax.reporting import groups as groups_
from cbkd_jax.reporting import section as section_
from cbkd_jax.reporting.drawn import Drawn
from cbkd_jax.reporting.groups import Group
from cbkd_jax.reporting.section import Section

PAGE, CARD = 'report.html', 'MODEL_CARD.md'


def build(
  directories: Sequence[Path],
  *,
  out: Path | None = None,
  analysed: bool = True,
  data_dir: str | None = None,
  examples: int | None = None,
  console: rich.console.Console,
) -> list[Path]:
  """Reads runs and writes what there is to say of them.

  Args:
    directories: workdirs, each of one run, of `compare` or of `pareto`.
    out: where the files go; default the first of them.
    analysed: whether to run teachers and students on the test split.
    data_dir: where the data are, as data.dir; default each config's.
    examples: of the test split at most so many.
    console: where to show how it goes.

  Returns:
    The files for people: the page, and for a single finished run its card.

  Raises:
    UserError: a directory holds no run, or nothing can be written where the
      files are to go; nothing was written.
  """
  out = out or directories[0]
  records = record.read_all(directories)
  _check_writable(out)
  shown, groups = records, []
  if len(records) > 1:
    groups = groups_.group(records)
    # One of each: runs that differ in their seed alone look alike.
    shown = [next(iter(group.finished), group.first) for group in groups]
  sections = []
  for one in shown:
    console.print(f'{one.name}: reading', highlight=False, markup=False)
    sections.append(
      section_.section(
        one, analysed=analysed, data_dir=data_dir, examples=examples
      )
    )
    for line in sections[-1].missing:
      console.print(line, highlight=False, markup=False, soft_wrap=True)
  console.print('drawing', highlight=False)
  return write(sections, groups, out)


def _check_writable(directory: Path) -> None:
  """Refuses a place for files before there is work for them.

  Raises:
    UserError: naming what is in the way.
  """
  if buckets.is_bucket(directory):
    return
  for path in (directory / page.FOLDER, directory, *directory.parents):
    if not path.exists():
      continue
    if not path.is_dir():
      raise UserError(f'{directory}: {path} is a file, not a directory')
    if not os.access(path, os.W_OK):
      raise UserError(f'{directory}: {path} can not be written to; see --out')
    return


def write(
  sections: Sequence[Section], groups: Sequence[Group], directory: Path
) -> list[Path]:
  """Writes the figures, the page and, for a single finished run, its card.

  Args:
    sections: the runs that are shown in full.
    groups: all runs, where there are several; else none.
    directory: where the files go; may be in a bucket.
  """
  across, table = [], None
  if groups:
    table = tables.side_by_side(groups)
    across = [drawn.render() for drawn in _across(groups)]
  shown = [
    (section, [drawn.render(start) for drawn in section.figures])
    for start, section in zip(page.prefixes(sections, bool(groups)), sections)
  ]
  html = page.render(shown, groups, across, table)
  text = None
  if not groups and sections[0].record.finished:
    # Without its student there is none; the page says why.
    with contextlib.suppress(UserError):
      text = card.render(sections[0])
  with buckets.told(directory, '--workdir'):
    folder = directory / page.FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for rendered in (
      *across,
      *(one for _, figures in shown for one in figures),
    ):
      rendered.write(folder)
    (directory / PAGE).write_text(html, encoding='utf-8')
    written = [directory / PAGE]
    if text is not None:
      (directory / CARD).write_text(text, encoding='utf-8')
      written.append(directory / CARD)
  return written


def _across(groups: Sequence[Group]) -> list[Drawn]:
  """The figures that several runs have in common."""
  if not groups_.comparable(groups):
    return []
  found = (
    accuracy_figure.accuracy(groups),
    runs_figure.size_and_accuracy(groups),
  )
  return [figure for figure in found if figure is not None]
