"""How long teacher and student take for a batch, in turns, as tables."""

import dataclasses
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import numpy as np
import rich.console

from cbkd_jax import runtimes, summary, timing
from cbkd_jax.runtimes import TEACHER, Runtime

_LEAST = 5  # rounds


@dataclasses.dataclass(frozen=True)
class Effort:
  """How often each network runs.

  Attributes:
    rounds: at most.
    seconds: for one runtime and batch size, roughly.
  """

  rounds: int = 200
  seconds: float = 5.0


def measure(
  runtime: Runtime, batch_sizes: Sequence[int], effort: Effort
) -> list[dict[str, Any]]:
  """Times a runtime's networks at each batch size.

  Args:
    runtime: the networks.
    batch_sizes: images of a run.
    effort: how often they run.

  Returns:
    What `rows` says, one batch size after the other.
  """
  found = []
  for batch_size in batch_sizes:
    times = timing.take_turns(
      {name: _warm(of(batch_size)) for name, of in runtime.networks.items()},
      most=effort.rounds,
      least=_LEAST,
      seconds=effort.seconds,
    )
    found += rows(runtime.name, batch_size, times)
  return found


def _warm(call: Callable[[], Any]) -> Callable[[], float]:
  """Times a call that finds the caches as itself has left them.

  As where a network runs alone. Another one's turn leaves its own arrays there.
  """
  run = timing.timed(call)

  def second() -> float:
    run()
    return run()

  return second


def rows(
  runtime: str, batch_size: int, times: Mapping[str, np.ndarray]
) -> list[dict[str, Any]]:
  """What the times of some networks' runs say.

  Args:
    runtime: what they ran on.
    batch_size: images of a run.
    times: seconds of each round's runs, by network, `[rounds]`.

  Returns:
    Of each network the median and the quartiles over the rounds: of its time,
    and of how many times as long the teacher took in the same round (None for
    the teacher itself); and images per second at the median.
  """
  found = []
  for name, seconds in times.items():
    took = timing.Latency.of(seconds)
    ratio = None
    if name != TEACHER:
      low, median, high = np.quantile(
        times[TEACHER] / seconds, (0.25, 0.5, 0.75)
      ).tolist()
      ratio = {'median': median, 'quartiles': [low, high]}
    found.append(
      {
        'runtime': runtime,
        'batch_size': batch_size,
        'network': name,
        'rounds': len(seconds),
        'milliseconds': {
          'median': took.median,
          'quartiles': [took.low, took.high],
        },
        'images_per_second': 1e3 * batch_size / took.median,
        'teacher_over_this': ratio,
      }
    )
  return found


def versions() -> dict[str, str]:
  """What a measurement depends on, beside the runtimes themselves."""
  return {
    'python': platform.python_version(),
    **{name: metadata.version(name) for name in ('jax', 'jaxlib', 'numpy')},
    'platform': platform.platform(),
    'cpu': runtimes.cpu_name(),
  }


def show(
  about: Mapping[str, Any],
  found: Sequence[Mapping[str, Any]],
  console: rich.console.Console,
) -> None:
  """Prints a runtime's rows as a table.

  Args:
    about: `Runtime.about`.
    found: the rows; all of one runtime.
    console: where to.
  """
  on = f' ({about["threads"]} threads)' if about['threads'] else ''
  table = summary.new_table(
    f'{found[0]["runtime"]} {about["version"]} on {about["device"]}{on}'
  )
  table.add_column('batch', justify='right', no_wrap=True)
  table.add_column('network', overflow='fold')
  for header in 'ms', 'quartiles', 'images/s', 'x faster', 'quartiles':
    table.add_column(header, justify='right', no_wrap=True)
  before = None
  for row in found:
    size = row['batch_size']
    if before not in (None, size):
      table.add_section()
    took, ratio = row['milliseconds'], row['teacher_over_this']
    table.add_row(
      f'{size:,}' if size != before else '',
      row['network'],
      _digits(took['median'], 3),
      '-'.join(_digits(q, 3) for q in took['quartiles']),
      _digits(row['images_per_second']),
      _digits(ratio['median']) if ratio else '',
      '-'.join(map(_digits, ratio['quartiles'])) if ratio else '',
    )
    before = size
  console.print(table)


def _digits(value: float, most: int = 2) -> str:
  """Three digits or more, but no more than `most` behind the point."""
  behind = 3 if value < 1 else 2 if value < 100 else 0
  return f'{value:,.{min(behind, most)}f}'
