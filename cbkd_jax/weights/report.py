"""The tables at the end of an import."""

from collections.abc import Mapping

import rich.console
import rich.text

from cbkd_jax import summary, trees
from cbkd_jax.weights.matching import Match


def show(
  found: Match,
  title: str,
  notes: Mapping[str, str],
  console: rich.console.Console,
) -> None:
  """Prints what fits, part by part, and every name that does not.

  Args:
    found: the match.
    title: the first line.
    notes: what becomes of what does not fit, by name: ours, or torch's where
      there is none of ours.
    console: where to.
  """
  console.print(rich.text.Text(title), soft_wrap=True)
  table = summary.new_table('')
  table.add_column('part', no_wrap=True)
  for column in ('matched', 'numbers'):
    table.add_column(column, justify='right', no_wrap=True)
  parts = 1 + max(entry.part for entry in found.entries)
  for part, name in enumerate(trees.part_names(parts - 1)):
    fitting = [e for e in found.matched if e.part == part]
    count = sum(e.part == part for e in found.entries)
    size = sum(found.arrays[e.torch_name].size for e in fitting)
    table.add_row(name, f'{len(fitting)} of {count}', f'{size:,}')
  console.print(table)
  if not found.full:
    console.print(_others(found, notes))


def _others(found: Match, notes: Mapping[str, str]) -> rich.table.Table:
  """Every name that does not fit, ours above torch's, shapes in torch's way."""
  table = summary.new_table('what does not match')
  for column in ('', 'name', 'here', 'there', ''):
    table.add_column(column, overflow='fold')

  def add(kind: str, name: str, here: str, there: str, note: str) -> None:
    table.add_row(*map(rich.text.Text, (kind, name, here, there, note)))

  for kind, entries in (
    ('missing', found.missing),
    ('other shape', found.misshapen),
  ):
    for e in sorted(entries, key=lambda e: e.name):
      theirs = found.arrays.get(e.torch_name)
      there = '' if theirs is None else _shape(theirs.shape)
      name = f'{e.name}\n{e.torch_name}'
      add(kind, name, _shape(e.torch_shape), there, notes.get(e.name, ''))
  for name in found.unexpected:
    there = _shape(found.arrays[name].shape)
    add('unexpected', name, '', there, notes.get(name, ''))
  return table


def _shape(shape: tuple[int, ...]) -> str:
  return 'x'.join(map(str, shape)) or 'scalar'
