"""What every command does before its work begins."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cbkd_jax import command

PACKAGE = Path(__file__).resolve().parent.parent / 'cbkd_jax'
COMMANDS = sorted(
  path.stem
  for path in PACKAGE.glob('*.py')
  if 'command.run(main' in path.read_text()
)
# Seconds to import, together.
HEAVY = {
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'numpy', 'scipy', 'sklearn'),
  *('cv2', 'tensorflow_datasets', 'tensorboardX', 'rich'),
}

# As `python -m`, and then what has been imported, as the last line.
_RUN = """
import json, runpy, sys
module, *arguments = sys.argv[1:]
sys.argv = [module, *arguments]
code = 0
try:
  runpy.run_module(module, run_name='__main__', alter_sys=True)
except SystemExit as end:
  code = end.code
packages = sorted({name.partition('.')[0] for name in sys.modules})
print(json.dumps([code, packages]))
"""


def _run(module, *arguments):
  """Exit code, output, the line of an error, and the packages imported."""
  ended = subprocess.run(
    [sys.executable, '-c', _RUN, f'cbkd_jax.{module}', *arguments],
    capture_output=True,
    text=True,
    check=True,
    cwd=PACKAGE.parent,
  )
  *lines, last = ended.stdout.splitlines()
  code, packages = json.loads(last)
  return code, '\n'.join(lines), ended.stderr, set(packages)


def test_the_commands_are_found():
  assert {'train', 'evaluate', 'predict', 'objective_costs'} <= set(COMMANDS)


@pytest.mark.parametrize('module', COMMANDS)
def test_help_is_a_success_and_imports_no_library(module):
  code, out, err, packages = _run(module, '--help')
  assert (code, err) == (0, '')
  tree = ast.parse((PACKAGE / f'{module}.py').read_text())
  assert out.startswith(ast.get_docstring(tree, clean=False))
  assert any(f'--{name}: ' in out for name in ('workdir', 'config', 'from'))
  assert '--pdb' not in out
  assert not packages & HEAVY


def test_a_wrong_field_is_found_before_a_library_is_imported():
  code, out, err, packages = _run(
    'train', '--config=configs/digits.py', '--config.tahw.epochs=3'
  )
  assert (code, out) == (2, '')
  assert err.startswith('error: --config=configs/digits.py: no such field: tah')
  assert not packages & HEAVY


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_nothing_is_one_line(capsys, number):
  """However deep in a library's errors it is."""
  cause = OSError(number, os.strerror(number), 'runs/x')
  error = ValueError('could not save')
  error.__cause__ = cause
  with pytest.raises(SystemExit) as end:
    command._end(error)
  assert end.value.code == 2
  assert capsys.readouterr().err == (
    f'error: writing failed: {os.strerror(number)} (runs/x); the last '
    'checkpoint is kept\n'
  )
  with pytest.raises(OSError, match='other'):
    command._end(OSError(errno.EIO, 'other'))
