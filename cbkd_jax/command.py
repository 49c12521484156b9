"""How the commands start and end: flags, one-line errors, exit codes."""

import errno
import os
import shlex
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from cbkd_jax import config, errors

# The name of threads whose work nobody needs once the command ends.
IN_THE_BACKGROUND = 'in the background'

_CODES = {
  errors.UserError: errors.EXIT_USAGE,
  errors.NonFiniteLossError: errors.EXIT_NON_FINITE,
  errors.Preempted: errors.EXIT_PREEMPTED,
}

# A disk that is full, beyond its quota or not to be written to.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# --help shows a command's own flags; --config, defined here, is one of them.
flags.disclaim_key_flags()


def define_config() -> flags.FlagHolder:
  """Defines `--config=FILE`, whose fields `--config.a.b=value` overrides."""
  config.add_configs_to_path()
  return config_flags.DEFINE_config_file(
    'config', None, 'A file with get_config(), e.g. configs/digits.py.'
  )


def run(main: Callable[..., Any], *, arguments: bool = False) -> None:
  """Parses the flags, runs `main` and ends the process.

  Exit codes: 0 done, 1 a fault of ours, 2 wrong usage or input, 3 a
  non-finite loss, 4 the other processes can't be reached, 75 stopped by a
  signal and saved. For all but 0 and 1 there is one line on stderr.

  Args:
    main: the command.
    arguments: whether it is given what follows the flags, or stands between
      them; else nothing may.
  """
  flags.FLAGS.set_gnu_getopt(arguments)

  # XLA's warnings on a GPU are of how it measures kernels; errors are shown.
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

  def guarded(argv: Sequence[str]) -> None:
    if len(argv) > 1 and not arguments:
      _fail(errors.EXIT_USAGE, f'unexpected argument {argv[1]!r}')
    logging.set_verbosity(logging.ERROR)
    try:
      main(*([argv[1:]] if arguments else []))
    except Exception as error:
      _end(error)
    except KeyboardInterrupt:
      # The second Ctrl-C, or one that came before anything was to be saved.
      _fail(errors.EXIT_PREEMPTED, 'interrupted; what was saved is kept')
    else:
      _part()

  sys.unraisablehook = _unraisable
  warnings.showwarning = _warn
  try:
    app.run(guarded, flags_parser=_parse)
  except SystemExit as end:
    _leave(end.code)
    raise
  except BaseException:
    if _busy():
      traceback.print_exc()
    _leave(1)
    raise


def _end(error: Exception) -> NoReturn:
  """Ends the command as its error wants it.

  Raises:
    SystemExit: with the error's exit code.
    Exception: the error itself, a fault of ours.
  """
  processes = _processes()
  if isinstance(error, errors.Unreachable):
    _fail(errors.EXIT_UNREACHABLE, error, at_once=True)
  if processes and processes.is_lost(error):
    _fail(errors.EXIT_UNREACHABLE, processes.lost(), at_once=True)
  if reason := _disk(error):
    _fail(
      errors.EXIT_USAGE,
      f'writing failed: {reason}; the last checkpoint is kept',
      at_once=bool(processes),
    )
  code = next((c for kind, c in _CODES.items() if isinstance(error, kind)), 1)
  if code == 1:
    if processes:  # the others wait for this one: let them see that it is gone
      traceback.print_exc()
      _at_once(1)
    raise error
  message = error
  if code == errors.EXIT_PREEMPTED:
    message = f'{error}; the same command goes on'
  if not processes:
    _fail(code, message)
  if isinstance(error, errors.UserError) and error.alone:
    _fail(code, message, at_once=True)
  # All processes end like this one: the first says why.
  if processes.is_first():
    _say(message)
  _part()
  sys.exit(code)


def _disk(error: BaseException | None) -> str | None:
  """The disk's reason for an error, at whatever depth; None: it has none."""
  while error is not None:
    if isinstance(error, OSError) and error.errno in _DISK:
      return f'{error.strerror} ({error.filename or "the workdir"})'
    error = error.__cause__ or error.__context__
  return None


def _processes() -> Any:
  """The module `processes` if this process is one of several."""
  module = sys.modules.get('cbkd_jax.processes')
  return module if module and module.joined() else None


def _part() -> None:
  """Takes leave of the other processes, which all do so now."""
  if processes := _processes():
    processes.leave()


def _at_once(code: int) -> NoReturn:
  """Ends the process without waiting for any thread or other process."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _leave(code: Any) -> None:
  """Ends the process at once if something still compiles in it.

  XLA can't be stopped: an ordinary end would wait for it, or crash in it.
  """
  if _busy():
    _at_once(code if isinstance(code, int) else int(code is not None))


def _busy() -> bool:
  return any(t.name == IN_THE_BACKGROUND for t in threading.enumerate())


def define_processes() -> None:
  """Defines the flags of a command that several processes run together."""
  flags.DEFINE_string(
    'coordinator',
    None,
    'Of several processes: HOST:PORT of process 0. Not needed where JAX finds '
    'out by itself: TPU pods, Slurm, Open MPI, GKE.',
  )
  flags.DEFINE_integer('processes', None, 'How many processes there are.')
  flags.DEFINE_integer('process_id', None, 'Which one this is, from 0.')
  flags.DEFINE_integer(
    'join_timeout', 300, 'Seconds to wait for the other processes.'
  )


def join_processes() -> None:
  """Joins the processes that the flags, or the cluster, speak of."""
  from cbkd_jax import processes  # with JAX, so not for --help

  values = flags.FLAGS
  processes.join(
    values.coordinator,
    values.processes,
    values.process_id,
    values.join_timeout,
  )


def line(module: str) -> str:
  """This command as it would be typed again.

  Args:
    module: of the command, 'cbkd_jax.train'.
  """
  return shlex.join(['python', '-m', module, *sys.argv[1:]])


def require(**values: Any) -> None:
  """Refuses a flag that was not given.

  Raises:
    UserError: naming it.
  """
  for name, value in values.items():
    if value is None:
      raise errors.UserError(f'--{name} is missing; see --help')


def check_new_file(flag: str, path: str | None, endings: Sequence[str]) -> None:
  """Refuses a file that could not be written, before there is work for it.

  Args:
    flag: its name, for the message.
    path: the file; None: the flag was not given.
    endings: one of which it must have.

  Raises:
    UserError: naming the flag.
  """
  if path is None:
    return
  if os.path.splitext(path)[1] not in endings:
    raise errors.UserError(
      f'--{flag}: {path}: must end in {", ".join(endings)}'
    )
  parent = os.path.dirname(path) or '.'
  if not os.path.isdir(parent):
    raise errors.UserError(f'--{flag}: {path}: there is no such directory')
  if not os.access(parent, os.W_OK):
    raise errors.UserError(
      f'--{flag}: {path}: the directory can not be written to'
    )


def numbers(flag: str, texts: Sequence[str]) -> tuple[int, ...]:
  """A flag's list of numbers.

  Args:
    flag: its name, for the message.
    texts: what was given.

  Raises:
    UserError: they are no numbers.
  """
  try:
    return tuple(int(text) for text in texts)
  except ValueError:
    raise errors.UserError(
      f'--{flag}: {",".join(texts)}: must be numbers, e.g. 1,2,4'
    ) from None


def set_up_devices(values: Mapping[str, Any]) -> None:
  """What must be set before JAX first looks for devices, or compiles."""
  from cbkd_jax import compilation, wall  # with JAX, so not for --help

  wall.begin()
  if values['deterministic']:
    # Choosing kernels by how fast they happen to run ends in other roundings.
    own = '--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0'
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {own}'
  compilation.set_up_cache(values['compilation_cache'])


def _parse(argv: Sequence[str]) -> list[str]:
  logging.set_verbosity(logging.ERROR)
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS['config'].present:
      _check_type(flags.FLAGS.config)
    return rest
  except SystemExit:
    # Absl shows help and ends with 1, as after a mistake.
    sys.exit(0)
  except flags.Error as error:
    if 'Traceback' not in str(error):
      _fail(errors.EXIT_USAGE, error)
    # Of the config file itself; its last line is the reason.
    reason = str(error).strip().splitlines()[-1]
  except OSError as error:
    # Without ml_collections' words and the paths that it tried.
    reason = str(error).strip().splitlines()[-1].rpartition('] ')[-1]
  except (AttributeError, KeyError) as error:
    # ml_collections: an override of a field that does not exist. The text is
    # an error's `repr` inside another error.
    reason = error.args[0] if error.args else error
    reason = str(reason).replace('\\n', ' ').replace('\\', '').replace("'", '')
    if 'get_config' not in reason:
      reason = f'no such field: {reason}'
  except Exception as error:
    # Raised by the config file itself.
    reason = f'{type(error).__name__}: {error}'
  _fail(errors.EXIT_USAGE, f'{_config_argument(argv)}: {reason}')


def _unraisable(unraisable: Any) -> None:
  """Python's own report, but for what follows an error that is told.

  Orbax reads with many threads; after the first one's error on a damaged
  checkpoint the others find the event loop closed, a traceback each.
  """
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
  """One line, of what is wrong and not of where in a library it was found.

  For instance an entry of the compilation cache that was cut short.
  """
  print(f'warning: {_line(message)}', file=sys.stderr)


def _check_type(found: Any) -> None:
  if not hasattr(found, 'items'):
    raise TypeError(
      'get_config() must return a ConfigDict, but returned '
      f'{type(found).__name__}'
    )


def _config_argument(argv: Sequence[str]) -> str:
  """`--config=FILE` as it was given."""
  for i, argument in enumerate(argv):
    name, _, value = argument.lstrip('-').partition('=')
    if name == 'config':
      return f'--config={value or "".join(argv[i + 1 : i + 2])}'
  return '--config'


def _fail(code: int, message: Any, at_once: bool = False) -> NoReturn:
  _say(message)
  if at_once:
    _at_once(code)
  sys.exit(code)


def _say(message: Any) -> None:
  print(f'error: {_line(message)}', file=sys.stderr)


def _line(message: Any) -> str:
  return ' '.join(str(message).split())
