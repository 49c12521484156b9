"""Whole networks as they are shipped, without a workdir: random arrays."""

import jax
import numpy as np

from cbkd_jax import blocks, deployed, models, trees
from cbkd_jax.models import folded


def network(family, image_shape, *, normalise, classes=5):
  """A `Deployed` of a family's own size, normalisations folded."""
  model = {
    'family': family,
    'classes': classes,
    'class_names': [f'class {i}' for i in range(classes)],
    'input_shape': list(image_shape),
    'mean': [0.5, 0.4, 0.3][: image_shape[2]],
    'std': [0.2, 0.25, 0.3][: image_shape[2]],
    'compute_dtype': 'float32',
  }
  net = models.build(family, classes, image_shape).network()
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    values = rng.normal(size=leaf.shape)
    name = path[-1].key
    if name in ('var', 'scale'):
      return np.float32(0.7 + 0.3 * np.abs(values))
    if name == 'kernel':
      values *= 10 / np.sqrt(np.prod(leaf.shape[:-1]))
    return np.float32(0.1 * values)

  variables = jax.tree_util.tree_map_with_path(
    draw, blocks.shapes(net, image_shape)
  )
  norms = folded.find(net, image_shape)
  arrays = trees.from_variables(folded.fold(variables, norms))
  return deployed.of_arrays(model, arrays, normalise=normalise, norms=norms)


def images(deployed, count):
  """Random ones, uint8."""
  shape = (count, *deployed.image_shape)
  return np.random.default_rng(count).integers(0, 256, shape).astype(np.uint8)
