"""A file's tensors beside a network's: what fits, what lacks, what is over."""

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from cbkd_jax.blocks import Architecture, Variables
from cbkd_jax.errors import UserError
from cbkd_jax.weights import naming
from cbkd_jax.weights.files import Arrays
from cbkd_jax.weights.naming import Entry


class Unmatched(ValueError):
  """What keeps a file and a network from matching, in words."""


# Counts of the steps that made the running averages; nothing of ours needs it.
_IGNORED = 'num_batches_tracked'


@dataclasses.dataclass(frozen=True)
class Match:
  """How a state dict and a network fit.

  Attributes:
    naming: whose names the network's arrays are looked up by.
    arrays: the state dict, in torch's layout.
    entries: all arrays of the network.
    matched: those that the state dict has, in the same shape.
    missing: those that it has not.
    misshapen: those that it has in another shape.
    unexpected: the names that it has beyond them.
  """

  naming: str
  arrays: Mapping[str, np.ndarray]
  entries: tuple[Entry, ...]
  matched: tuple[Entry, ...]
  missing: tuple[Entry, ...]
  misshapen: tuple[Entry, ...]
  unexpected: tuple[str, ...]

  @property
  def full(self) -> bool:
    """Whether every array has its tensor and every tensor its array."""
    return not (self.missing or self.misshapen or self.unexpected)

  def summary(self) -> str:
    """What keeps it from being full, in words, with the first of each."""
    said = []
    if self.misshapen:
      first = self.misshapen[0]
      said.append(
        f'{len(self.misshapen)} of another shape ({first.torch_name}: '
        f'{self.arrays[first.torch_name].shape} there, {first.torch_shape} '
        'here)'
      )
    if self.missing:
      said.append(f'{len(self.missing)} missing ({self.missing[0].torch_name})')
    if self.unexpected:
      said.append(f'{len(self.unexpected)} unexpected ({self.unexpected[0]})')
    return ', '.join(said)


def match(
  arrays: Arrays, architecture: Architecture, shapes: Variables, names: str
) -> Match:
  """Looks a network's arrays up in a state dict.

  Args:
    arrays: the state dict.
    architecture: the network's.
    shapes: of its variables.
    names: one of the architecture's namings.
  """
  entries = naming.entries(architecture, shapes, names)
  groups = {'matched': [], 'missing': [], 'misshapen': []}
  for entry in entries:
    found = arrays.get(entry.torch_name)
    if found is None:
      group = 'missing'
    elif found.shape != entry.torch_shape:
      group = 'misshapen'
    else:
      group = 'matched'
    groups[group].append(entry)
  known = {entry.torch_name for entry in entries}
  unexpected = [
    name
    for name in arrays
    if name not in known and name.rpartition('.')[2] != _IGNORED
  ]
  return Match(
    names,
    arrays,
    entries,
    **{group: tuple(found) for group, found in groups.items()},
    unexpected=tuple(unexpected),
  )


def best(
  state_dicts: Mapping[str, Arrays],
  architecture: Architecture,
  shapes: Variables,
  namings: Sequence[str],
) -> Match:
  """The state dict and the naming of which most fits.

  Args:
    state_dicts: by their names in the file.
    architecture: the network's.
    shapes: of its variables.
    namings: those to try; of equals the first.

  Raises:
    UserError: several state dicts fit equally well.
  """
  matches = {
    entry: max(
      (match(arrays, architecture, shapes, names) for names in namings),
      key=_rank,
    )
    for entry, arrays in state_dicts.items()
  }
  top = max(map(_rank, matches.values()))
  chosen = [entry for entry, found in matches.items() if _rank(found) == top]
  if len(chosen) > 1:
    raise UserError(
      f'the file holds several state dicts ({", ".join(chosen)}); --entry says '
      'which to take'
    )
  return matches[chosen[0]]


def _rank(found: Match) -> tuple[int, int, int]:
  """More arrays in place; else more names known; else fewer names over."""
  return (
    len(found.matched),
    len(found.misshapen),
    -len(found.unexpected),
  )


def check_allowed(found: Match, patterns: Sequence[str]) -> None:
  """Refuses what does not fit and no pattern permits.

  Args:
    found: the match.
    patterns: names of ours or torch's, of arrays or their layers; with `*`.

  Raises:
    Unmatched: something does not fit.
    UserError: a pattern fits nothing.
  """
  for pattern in patterns:
    names = [n for e in found.entries for n in (e.name, e.torch_name)]
    if not any(_covers(pattern, name) for name in [*names, *found.arrays]):
      raise UserError(f'--allow_missing={pattern}: there is no such name')

  def allowed(*names: str) -> bool:
    return any(_covers(p, name) for p in patterns for name in names)

  rest = dataclasses.replace(
    found,
    missing=_without(found.missing, allowed),
    misshapen=_without(found.misshapen, allowed),
    unexpected=tuple(n for n in found.unexpected if not allowed(n)),
  )
  if not rest.full:
    raise Unmatched(rest.summary())


def _without(
  entries: Iterable[Entry], allowed: Callable[..., bool]
) -> tuple[Entry, ...]:
  return tuple(e for e in entries if not allowed(e.name, e.torch_name))


def _covers(pattern: str, name: str) -> bool:
  """Whether a pattern means an array's name, or that of its layer.

  The layer may stand without our part's name: 'classifier' for
  'head/classifier/kernel'.
  """
  separator = '/' if '/' in name else '.'
  layer = name.rpartition(separator)[0]
  candidates = {name, layer}
  if separator == '/':
    candidates |= {c.partition('/')[2] for c in (name, layer)}
  return any(fnmatch.fnmatchcase(c, pattern) for c in candidates if c)
