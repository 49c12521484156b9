"""The documents say what the code has."""

from pathlib import Path

import golden
import pytest

from benchmarks import scaling_on_paper
from cbkd_jax import objectives

DOCS = Path(__file__).resolve().parent.parent / 'docs'
ROWS = {
  line.split('|')[1].strip().strip('`'): line
  for line in (DOCS / 'objectives.md').read_text().splitlines()
  if line.startswith('| `')
}


def test_the_table_has_every_method():
  assert sorted(ROWS) == sorted(set(objectives.METHODS) - {'ce'})


@pytest.mark.parametrize('name', ROWS)
def test_its_recipe_and_paper(name):
  method = objectives.METHODS[name]
  cells = [cell.strip() for cell in ROWS[name].split('|')]
  assert cells[2] == method.knowledge
  assert cells[5] == f'`{method.recipe}`'
  assert cells[8] == method.paper


def test_its_cases_are_all_there():
  folder = golden._FULL_SET / 'losses'
  if not folder.exists():
    pytest.skip(f'the full set of golden files is not in {folder}')
  counted = sum(int(row.split('|')[6]) for row in ROWS.values())
  assert counted == len(list(folder.glob('*.npz')))


@pytest.mark.parametrize(
  'table', [pytest.param('sent', marks=pytest.mark.thorough), 'expected']
)
def test_the_tables_of_scaling_are_computed(table):
  lines = getattr(scaling_on_paper, table)()
  assert '\n'.join(lines) in (DOCS / 'scaling.md').read_text()
