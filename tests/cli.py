"""Calls a command as the command line would, in this process."""

import contextlib
import io
import os
import runpy
import signal
import sys
import warnings
from typing import NamedTuple
from unittest import mock

import jax
from absl import app, flags


class Ended(NamedTuple):
  """How it ended."""

  code: int
  out: str
  err: str


def _no_cluster(*_, **__):
  raise ValueError('coordinator_address should be defined.')


def call(module: str, *arguments: str) -> Ended:
  """`python -m module arguments`, without the seconds of a new process."""
  app.define_help_flags()
  known = set(flags.FLAGS)
  sys.modules.pop('config_config', None)  # ml_collections' last config file
  signals = signal.SIGINT, signal.SIGTERM
  handlers = [signal.getsignal(number) for number in signals]
  cache = jax.config.jax_enable_compilation_cache
  out, err, code = io.StringIO(), io.StringIO(), 0
  with (
    mock.patch.object(sys, 'argv', [module, *arguments]),
    mock.patch.object(os, '_exit', sys.exit),  # what still compiles may go on
    # JAX would not look for a cluster any more: it is in use.
    mock.patch.object(jax.distributed, 'initialize', _no_cluster),
    contextlib.redirect_stdout(out),
    contextlib.redirect_stderr(err),
    warnings.catch_warnings(),
  ):
    # runpy: the module has been imported before; ml_collections: how it
    # imports the config file.
    warnings.simplefilter('ignore', RuntimeWarning)
    warnings.simplefilter('ignore', DeprecationWarning)
    try:
      runpy.run_module(module, run_name='__main__')
    except SystemExit as end:
      code = end.code or 0
    finally:
      jax.config.update('jax_enable_compilation_cache', cache)
      for number, handler in zip(signals, handlers):
        signal.signal(number, handler)
      for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)
      flags.FLAGS.unparse_flags()
  return Ended(code, out.getvalue(), err.getvalue())
