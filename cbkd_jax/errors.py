"""The ways a run may end other than well, each with its exit code."""

import difflib
from collections.abc import Iterable

EXIT_USAGE = 2
EXIT_NON_FINITE = 3
EXIT_UNREACHABLE = 4
EXIT_PREEMPTED = 75


class UserError(ValueError):
  """Wrong usage, config, data or checkpoint: one line, exit code 2.

  The message names the field, its value and what is allowed.

  Attributes:
    alone: whether, of several processes, only this one knows of it.
  """

  alone = True


class NonFiniteLossError(FloatingPointError):
  """A loss term became NaN or infinite: exit code 3."""


class Unreachable(ConnectionError):
  """The other processes can't be reached: exit code 4."""


class Preempted(Exception):
  """SIGTERM or SIGINT arrived and the state was saved: exit code 75."""


def nearest(name: str, known: Iterable[str]) -> str:
  """The hint `; did you mean 'x'?` for a misspelt name, or an empty string."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f"; did you mean '{close[0]}'?" if close else ''
