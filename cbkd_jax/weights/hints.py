"""What a user whose file does not match may have meant."""

import difflib
import itertools
from collections.abc import Iterator, Mapping

from cbkd_jax import blocks, models
from cbkd_jax.blocks import Architecture
from cbkd_jax.errors import UserError
from cbkd_jax.weights import matching, naming
from cbkd_jax.weights.files import Arrays
from cbkd_jax.weights.matching import Match

# A stem, or a table of positions, is made for some size of images.
_SIDES = (32, 64, 224)

Candidate = tuple[str, int, tuple[int, int, int]]


def hint(
  found: Match,
  state_dicts: Mapping[str, Arrays],
  model: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
) -> str:
  """What does match, such as `; it matches --num_classes=100`; may be empty.

  Args:
    found: the match that is not full.
    state_dicts: the file's.
    model: the network's name.
    num_classes: as given.
    image_shape: as given.
  """
  given = {'model': model, 'num_classes': num_classes}
  given['image_shape'] = image_shape
  for candidate in _candidates(found, model, num_classes, image_shape):
    if _matches(state_dicts, *candidate):
      changed = [
        f'--{flag}={_text(value)}'
        for (flag, old), value in zip(given.items(), candidate)
        if value != old
      ]
      return f'; it matches {" ".join(changed)}{_new_head(found)}'
  return _new_head(found)


def _new_head(found: Match) -> str:
  """How to have a classifier of one's own, where only that does not match."""
  last = max(entry.part for entry in found.entries)
  others = [e for e in (*found.missing, *found.misshapen) if e.part != last]
  if others or found.unexpected:
    return ''
  names = [e.torch_name for e in (*found.missing, *found.misshapen)]
  return f'; --allow_missing={",".join(names)} draws them at random'


def _candidates(
  found: Match,
  model: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
) -> Iterator[Candidate]:
  """The same model with other classes and images; then other models."""
  last = max(entry.part for entry in found.entries)
  heads = (e.torch_name for e in found.misshapen if e.part == last)
  sizes = [found.arrays[name].shape[:1] for name in heads]
  classes = dict.fromkeys([num_classes, *(s[0] for s in sizes if s)])
  shapes = dict.fromkeys(
    [image_shape, *((side, side, image_shape[2]) for side in _SIDES)]
  )
  if found.misshapen:
    for count, shape in itertools.product(classes, shapes):
      yield model, count, shape
  others = [name for name in models.known() if name != model]
  others.sort(key=lambda n: -difflib.SequenceMatcher(None, model, n).ratio())
  for name, count in itertools.product(others, classes):
    for shape in dict.fromkeys([image_shape, naming.default_image_shape(name)]):
      yield name, count, shape


def _matches(
  state_dicts: Mapping[str, Arrays],
  model: str,
  num_classes: int,
  image_shape: tuple[int, int, int],
) -> bool:
  try:
    architecture = models.build(model, num_classes, image_shape)
    fitting = [
      (names, arrays)
      for names in architecture.torch_names or ()
      for arrays in state_dicts.values()
      if _has_layers(arrays, architecture, names)
    ]
    if not fitting:
      return False
    shapes = blocks.shapes(architecture.network(), image_shape)
  except UserError:
    return False
  return any(
    matching.match(arrays, architecture, shapes, names).full
    for names, arrays in fitting
  )


def _has_layers(arrays: Arrays, architecture: Architecture, names: str) -> bool:
  """Whether all layers of the wiring are there; shapes take longer to know."""
  if architecture.wiring is None:
    return True
  torch_name = architecture.torch_names[names]
  modules = {name.rpartition('.')[0] for name in arrays}
  return all(
    torch_name(part, layer.path) in modules
    for part, units in enumerate((*architecture.units, 0))
    for layer in architecture.wiring(part, units)
  )


def _text(value: str | int | tuple[int, ...]) -> str:
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)
