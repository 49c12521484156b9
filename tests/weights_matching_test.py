"""What of a file fits a network, and what may be left."""

import dataclasses

import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, models
from cbkd_jax.errors import UserError
from cbkd_jax.weights import hints, matching, naming

CLASSIFIER = ['head/classifier/bias', 'head/classifier/kernel']


def torch_name(part, path):
  return f'layers.{part}.{path.replace("/", ".")}'


ARCHITECTURE = dataclasses.replace(
  tiny.architecture(),
  torch_names={'other': lambda *_: 'x', 'own': torch_name},
)
SHAPES = blocks.shapes(ARCHITECTURE.network(), tiny.IMAGE_SHAPE)
ENTRIES = naming.entries(ARCHITECTURE, SHAPES, 'own')


def state(**changes):
  """A full match but for `changes`: None drops, a shape replaces or adds."""
  found = {e.torch_name: np.zeros(e.torch_shape, np.float32) for e in ENTRIES}
  for name, shape in changes.items():
    name = name.replace('__', '.')
    found.pop(name, None)
    if shape is not None:
      found[name] = np.zeros(shape, np.float32)
  return found


def match(arrays):
  return matching.match(arrays, ARCHITECTURE, SHAPES, 'own')


def names(entries):
  return [entry.name for entry in entries]


def test_a_full_match_ignores_step_counters():
  found = match(state(layers__0__unit_0__norm__num_batches_tracked=()))
  assert found.full
  assert found.matched == ENTRIES
  assert len(ENTRIES) == 3 * 6 + 2


def test_what_does_not_fit():
  found = match(
    state(
      layers__0__unit_0__norm__running_var=None,
      layers__3__classifier__weight=(5, 8),
      layers__3__classifier__bias=(5,),
      extra__weight=(2, 3),
    )
  )
  assert not found.full
  assert names(found.missing) == ['block_0/unit_0/norm/var']
  assert names(found.misshapen) == CLASSIFIER
  assert found.unexpected == ('extra.weight',)
  assert len(found.matched) == len(ENTRIES) - 3
  with pytest.raises(matching.Unmatched) as error:
    matching.check_allowed(found, ())
  assert str(error.value) == (
    '2 of another shape (layers.3.classifier.bias: (5,) there, (3,) here), 1 '
    'missing (layers.0.unit_0.norm.running_var), 1 unexpected (extra.weight)'
  )


@pytest.mark.parametrize(
  'patterns',
  [
    ['layers.3.classifier.weight', 'layers.3.classifier.bias'],
    ['layers.3.classifier'],
    ['layers.3.*'],
    ['head/classifier/kernel', 'head/classifier/bias'],
    ['head/classifier'],
    ['head/*'],
    ['classifier'],
    ['*'],
  ],
)
def test_patterns_that_permit_a_new_classifier(patterns):
  other = match(
    state(
      layers__3__classifier__weight=(5, 8), layers__3__classifier__bias=None
    )
  )
  assert not other.full
  matching.check_allowed(other, patterns)


def test_patterns_permit_nothing_else():
  found = match(
    state(layers__3__classifier__bias=None, layers__1__unit_0__conv__bias=None)
  )
  with pytest.raises(
    matching.Unmatched, match=r'1 missing \(layers.1.unit_0.conv.bias\)'
  ):
    matching.check_allowed(found, ['layers.3.*'])
  found = match(state(extra__weight=(2,), extras__weight=(2,)))
  with pytest.raises(matching.Unmatched, match=r'1 unexpected \(extras.weigh'):
    matching.check_allowed(found, ['extra'])
  matching.check_allowed(found, ['extra*'])


def test_a_pattern_without_a_name_is_a_mistake():
  with pytest.raises(UserError, match=r'--allow_missing=fcc: there is no such'):
    matching.check_allowed(match(state()), ['fcc'])


def test_naming_and_entry_are_those_that_most_fit():
  namings = naming.namings(ARCHITECTURE, 'tiny')
  files = {
    'memory': {'bank': np.zeros((4, 4), np.float32)},
    'model': state(layers__3__classifier__bias=None),
    'older': state(
      layers__3__classifier__bias=None, layers__3__classifier__weight=None
    ),
  }
  found = matching.best(files, ARCHITECTURE, SHAPES, namings)
  assert found.naming == 'own'
  assert found.arrays is files['model']
  files['model_ema'] = state(layers__3__classifier__bias=None)
  with pytest.raises(
    UserError, match=r'several state dicts \(model, model_ema\); --entry says'
  ):
    matching.best(files, ARCHITECTURE, SHAPES, namings)


def published(model, classes, side):
  """The state dict of a model, of arrays that need no memory."""
  shape = (side, side, 3)
  architecture = models.build(model, classes, shape)
  shapes = blocks.shapes(architecture.network(), shape)
  names = next(iter(architecture.torch_names))
  zero = np.float32(0)
  return {
    entry.torch_name: np.broadcast_to(zero, entry.torch_shape)
    for entry in naming.entries(architecture, shapes, names)
  }


@pytest.mark.parametrize(
  ('file', 'asked', 'expected'),
  [
    (
      ('resnet18', 1000, 224),
      ('resnet18', 1000, 32),
      '; it matches --image_shape=224,224,3',
    ),
    (
      ('resnet18', 1000, 224),
      ('resnet18', 10, 64),
      '; it matches --num_classes=1000 --image_shape=224,224,3',
    ),
    (
      ('vgg8', 100, 32),
      ('vgg8', 10, 32),
      '; it matches --num_classes=100; '
      '--allow_missing=classifier.bias,classifier.weight draws them at random',
    ),
    (
      ('resnet8x4', 100, 32),
      ('resnet8', 100, 32),
      '; it matches --model=resnet8x4',
    ),
    (
      ('resnet18', 1000, 224),
      ('resnet20', 10, 32),
      '; it matches --model=resnet18 --num_classes=1000 '
      '--image_shape=224,224,3',
    ),
  ],
)
def test_hints(file, asked, expected):
  model, classes, side = asked
  shape = (side, side, 3)
  architecture = models.build(model, classes, shape)
  shapes = blocks.shapes(architecture.network(), shape)
  files = {'': published(*file)}
  found = matching.best(
    files, architecture, shapes, [*architecture.torch_names]
  )
  assert hints.hint(found, files, model, classes, shape) == expected


def test_no_hint_for_a_network_of_others():
  files = {'': {'transformer.wte.weight': np.zeros((4, 4), np.float32)}}
  shapes = blocks.shapes(
    models.build('vgg8', 3, (8, 8, 3)).network(), (8, 8, 3)
  )
  architecture = models.build('vgg8', 3, (8, 8, 3))
  found = matching.best(files, architecture, shapes, ['repdistiller'])
  assert hints.hint(found, files, 'vgg8', 3, (8, 8, 3)) == ''
