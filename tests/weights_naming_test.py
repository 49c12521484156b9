"""Our arrays' names and layouts in PyTorch, in full for what is published."""

import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, models
from cbkd_jax.errors import UserError
from cbkd_jax.weights import naming


def norm(name, width):
  """The entries of a normalisation, but for the step counter."""
  leaves = 'weight', 'bias', 'running_mean', 'running_var'
  return {f'{name}.{leaf}': (width,) for leaf in leaves}


def resnet(units, bottleneck):
  """What torchvision's and timm's ResNets hold; written from their papers."""
  found = {'conv1.weight': (64, 3, 7, 7), **norm('bn1', 64)}
  inputs = 64
  for group, count in enumerate(units):
    mid = 64 * 2**group
    width = 4 * mid if bottleneck else mid
    for unit in range(count):
      name = f'layer{group + 1}.{unit}'
      if bottleneck:
        convs = (mid, inputs, 1), (mid, mid, 3), (width, mid, 1)
      else:
        convs = (mid, inputs, 3), (mid, mid, 3)
      for i, (out, into, kernel) in enumerate(convs, 1):
        found[f'{name}.conv{i}.weight'] = (out, into, kernel, kernel)
        found |= norm(f'{name}.bn{i}', out)
      if inputs != width:
        found[f'{name}.downsample.0.weight'] = (width, inputs, 1, 1)
        found |= norm(f'{name}.downsample.1', width)
      inputs = width
  return found | {'fc.weight': (1000, inputs), 'fc.bias': (1000,)}


def mobilenet_v2(torchvision):
  """What torchvision's and timm's MobileNetV2 hold."""
  stem, stem_norm = (
    ('features.0.0', 'features.0.1') if torchvision else ('conv_stem', 'bn1')
  )
  found = {f'{stem}.weight': (32, 3, 3, 3), **norm(stem_norm, 32)}
  inputs, row = 32, 0
  groups = (1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4)
  groups += (6, 96, 3), (6, 160, 3), (6, 320, 1)
  for group, (expansion, width, units) in enumerate(groups):
    for unit in range(units):
      row += 1
      mid = expansion * inputs
      convs = [(mid, inputs, 1, 1), (mid, 1, 3, 3), (width, mid, 1, 1)]
      if torchvision:
        layers = [('conv.0.0', 'conv.0.1'), ('conv.1.0', 'conv.1.1')]
        layers += [('conv.2', 'conv.3')]
        if expansion == 1:
          layers = [None, ('conv.0.0', 'conv.0.1'), ('conv.1', 'conv.2')]
        name = f'features.{row}'
      else:
        layers = [('conv_pw', 'bn1'), ('conv_dw', 'bn2'), ('conv_pwl', 'bn3')]
        if expansion == 1:
          layers = [None, ('conv_dw', 'bn1'), ('conv_pw', 'bn2')]
        name = f'blocks.{group}.{unit}'
      for shape, layer in list(zip(convs, layers))[expansion == 1 :]:
        found[f'{name}.{layer[0]}.weight'] = shape
        found |= norm(f'{name}.{layer[1]}', shape[0])
      inputs = width
  conv, last, classifier = (
    ('features.18.0', 'features.18.1', 'classifier.1')
    if torchvision
    else ('conv_head', 'bn2', 'classifier')
  )
  found[f'{conv}.weight'] = (1280, 320, 1, 1)
  found |= norm(last, 1280)
  classifier = {
    f'{classifier}.weight': (1000, 1280),
    f'{classifier}.bias': (1000,),
  }
  return found | classifier


# model, whose names: what it holds, how many tensors and trained numbers.
PUBLISHED = {
  ('resnet18', 'torchvision'): (resnet((2, 2, 2, 2), False), 102, 11_689_512),
  ('resnet18', 'timm'): (resnet((2, 2, 2, 2), False), 102, 11_689_512),
  ('resnet34', 'torchvision'): (resnet((3, 4, 6, 3), False), 182, 21_797_672),
  ('resnet34', 'timm'): (resnet((3, 4, 6, 3), False), 182, 21_797_672),
  ('resnet50', 'torchvision'): (resnet((3, 4, 6, 3), True), 267, 25_557_032),
  ('resnet50', 'timm'): (resnet((3, 4, 6, 3), True), 267, 25_557_032),
  ('mobilenet_v2', 'torchvision'): (mobilenet_v2(True), 262, 3_504_872),
  ('mobilenet_v2', 'timm'): (mobilenet_v2(False), 262, 3_504_872),
}


@pytest.mark.parametrize(('model', 'names'), PUBLISHED)
def test_all_names_and_shapes_of_a_published_network(model, names):
  expected, tensors, params = PUBLISHED[model, names]
  assert len(expected) == tensors
  trained = {k: v for k, v in expected.items() if 'running_' not in k}
  assert sum(int(np.prod(shape)) for shape in trained.values()) == params
  architecture = models.build(model, 1000, (224, 224, 3))
  shapes = blocks.shapes(architecture.network(), (224, 224, 3))
  found = naming.entries(architecture, shapes, names)
  assert {e.torch_name: e.torch_shape for e in found} == expected
  assert len(found) == tensors


def test_layouts():
  kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
  theirs = naming.to_torch('block_0/conv/kernel', kernel)
  assert theirs.shape == (5, 4, 2, 3)
  assert theirs[4, 3, 1, 2] == kernel[1, 2, 3, 4]
  assert theirs[1, 2, 0, 1] == kernel[0, 1, 2, 1]
  dense = np.arange(6).reshape(2, 3)
  np.testing.assert_array_equal(
    naming.to_torch('head/classifier/kernel', dense), [[0, 3], [1, 4], [2, 5]]
  )
  for name, array in (('a/kernel', kernel), ('kernel', dense)):
    back = naming.from_torch(name, naming.to_torch(name, array))
    np.testing.assert_array_equal(back, array)
  # Tables that are no kernels, and vectors, are the same in both.
  for name, array in (
    ('block_0/pos_embed', dense),
    ('block_0/gamma', np.arange(3)),
    ('head/classifier/bias', np.arange(3)),
  ):
    assert naming.to_torch(name, array) is array
    assert naming.from_torch(name, array) is array


def test_leaves_and_arrays_that_lie_in_the_part_itself():
  architecture = tiny.architecture()
  names = {'own': lambda part, path: f'p{part}.{path}'.strip('.') * bool(path)}
  object.__setattr__(architecture, 'torch_names', names)
  one = {'a': {'kernel': np.ones((2, 3)), 'scale': np.ones(2)}}
  two = {'cls_token': np.ones((1, 1, 4)), 'b': {'c': {'bias': np.ones(5)}}}
  shapes = blocks.Variables(
    (one, two), ({'a': {'mean': np.ones(2), 'var': np.ones(2)}}, {})
  )
  found = naming.entries(architecture, shapes, 'own')
  assert [(e.part, e.name, e.torch_name, e.torch_shape) for e in found] == [
    (0, 'block_0/a/kernel', 'p0.a.weight', (3, 2)),
    (0, 'block_0/a/scale', 'p0.a.weight', (2,)),
    (1, 'head/b/c/bias', 'p1.b/c.bias', (5,)),
    (1, 'head/cls_token', 'cls_token', (1, 1, 4)),
    (0, 'block_0/a/mean', 'p0.a.running_mean', (2,)),
    (0, 'block_0/a/var', 'p0.a.running_var', (2,)),
  ]


def test_names_that_are_not_known():
  with pytest.raises(UserError, match=r"model 'x' knows no names of PyTorch's"):
    naming.namings(tiny.architecture(), 'x')
  with pytest.raises(UserError, match=r"--names=tim: .*; did you mean 'timm'?"):
    naming.check('tim', ('torchvision', 'timm'))
