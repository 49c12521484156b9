"""How the commands start and end: flags, one-line errors, exit codes."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from cbkd_jax import errors


def define_config() -> flags.FlagHolder:
  """Defines `--config=FILE`, whose fields `--config.a.b=value` overrides."""
  # Config files start with `from configs import default`, wherever they are.
  root = str(Path(__file__).resolve().parent.parent)
  if root not in sys.path:
    sys.path.append(root)
  return config_flags.DEFINE_config_file(
    'config', None, 'A file with get_config(), e.g. configs/digits.py.'
  )


def run(main: Callable[[], Any]) -> None:
  """Parses the flags, runs `main` and ends the process.

  Exit codes: 0 done, 1 a fault of ours, 2 wrong usage or input, 3 a
  non-finite loss, 75 stopped by a signal and saved. For 2, 3 and 75 there is
  one line on stderr.
  """

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      _fail(errors.EXIT_USAGE, f'unexpected argument {argv[1]!r}')
    logging.set_verbosity(logging.ERROR)
    try:
      main()
    except errors.UserError as error:
      _fail(errors.EXIT_USAGE, error)
    except errors.NonFiniteLossError as error:
      _fail(errors.EXIT_NON_FINITE, error)
    except errors.Preempted as error:
      _fail(errors.EXIT_PREEMPTED, f'{error}; the same command goes on')

  app.run(guarded, flags_parser=_parse)


def require(**values: Any) -> None:
  """Refuses a flag that was not given.

  Raises:
    UserError: naming it.
  """
  for name, value in values.items():
    if value is None:
      raise errors.UserError(f'--{name} is missing; see --help')


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    _fail(errors.EXIT_USAGE, error)
  except AttributeError as error:
    # ml_collections: an override of a field that does not exist.
    _fail(errors.EXIT_USAGE, f'--config: no such field {error}')
  except Exception as error:
    # Raised inside the config file itself, or while it was looked for.
    _fail(errors.EXIT_USAGE, f'--config: {type(error).__name__}: {error}')


def _fail(code: int, message: Any) -> None:
  line = ' '.join(str(message).split())
  print(f'error: {line}', file=sys.stderr)
  sys.exit(code)
