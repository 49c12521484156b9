"""Compiled programs, kept on disk from one process to the next."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import jax

OFF = 'off'
# Seconds that a program must take to compile to be kept: all are. Of the 86 of
# the digits run (1.7 MB) 12 take the 1 s that JAX asks for, and the others a
# tenth of the time.
_MIN_SECONDS = 0.0


def set_up_cache(place: str) -> None:
  """Lets JAX find what an earlier process has compiled, and keep more.

  The programs are the same, so are their results. What JAX itself has been
  told stays: JAX_ENABLE_COMPILATION_CACHE=false, and the settings beside
  JAX_COMPILATION_CACHE_DIR. A directory that can't be used, or with entries
  that can't be read, costs one line on stderr and the time to compile.

  Args:
    place: `config.compilation_cache`: a directory; '' for
      JAX_COMPILATION_CACHE_DIR where that is set, else the user's cache
      directory; 'off' for none.
  """
  if not jax.config.jax_enable_compilation_cache:
    return
  if place == OFF:
    jax.config.update('jax_enable_compilation_cache', False)
    return
  if not place and jax.config.jax_compilation_cache_dir:
    return
  try:
    # Absolute: the path is part of what a program is found by.
    directory = Path(place).expanduser().absolute() if place else _of_user()
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK | os.X_OK):
      raise PermissionError(None, 'Permission denied', str(directory))
  except (OSError, RuntimeError) as error:
    reason = str(error)
    if isinstance(error, OSError):
      reason = f'{error.filename}: {error.strerror}'
    print(
      f'warning: no compilation cache, {reason}; see config.compilation_cache',
      file=sys.stderr,
    )
    jax.config.update('jax_enable_compilation_cache', False)
    return
  jax.config.update('jax_compilation_cache_dir', str(directory))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', _MIN_SECONDS)
  _warn_once(directory)


def _warn_once(directory: Path) -> None:
  """Makes one warning of JAX's many, and adds what helps.

  JAX warns of every entry that it can't read, compiles the program and lets
  the entry stand as it is.
  """
  show, shown = warnings.showwarning, []

  def showwarning(message: Any, *where: Any) -> None:
    if 'persistent compilation cache' in str(message):
      if shown:
        return
      shown.append(message)
      message = UserWarning(f'{message}; {directory} may be deleted')
    show(message, *where)

  warnings.showwarning = showwarning


def _of_user() -> Path:
  """Where the XDG specification wants a user's cache.

  Raises:
    RuntimeError: the user has no home.
  """
  base = Path(os.environ.get('XDG_CACHE_HOME', ''))
  if not base.is_absolute():  # the specification: relative ones are ignored
    base = Path.home() / '.cache'
  return base / 'cbkd_jax' / 'xla'
