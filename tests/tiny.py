"""The smallest network that has everything: for tests of what is around it.

Three blocks of one convolution each; the first two end with a pooling, so
that what is done before and after it differs.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cbkd_jax import blocks, compression
from cbkd_jax.blocks import Architecture, Layer, Network, Variables
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.models import layers, vgg

IMAGE_SHAPE = (8, 8, 1)
CLASSES = 3
WIDTHS = (4, 6, 8)
KEEP = (1, 0.5, 0.5)
PLAIN = Augmentation(pad=0, flip=False, mean=(0.5,), std=(0.25,))


def architecture(
  axis_name: str | None = None, dtype=jnp.float32, units=(1, 1, 1)
) -> Architecture:
  def block(index: int, width: int, units: int) -> vgg.VGGBlock:
    return vgg.VGGBlock(width, units, index < 2, dtype, axis_name)

  def wiring(index: int, units: int) -> tuple[Layer, ...]:
    return vgg._wiring(5 if index == len(WIDTHS) else index, units)

  return Architecture(
    widths=WIDTHS,
    units=units,
    block=block,
    head=lambda: layers.PoolingHead(CLASSES),
    wiring=wiring,
    cut_norm=lambda i, units: (i, f'unit_{units - 1}/norm'),
  )


def student(teacher: Architecture) -> compression.Student:
  return compression.compress(teacher, keep=KEEP, depth=(), inherit=1)


def hybrid(
  teacher: Architecture, is_student: tuple[bool, ...], dtype=jnp.float32
) -> Network:
  """Teacher and student blocks, chosen one by one."""
  small = student(teacher).network(dtype, folded=False)
  return Network(
    tuple(
      s if chosen else t
      for s, t, chosen in zip(
        small.blocks, teacher.network().blocks, is_student
      )
    ),
    small.head,
  )


def draw(
  network: Network, image_shape: tuple[int, int, int] = IMAGE_SHAPE, seed=0
) -> Variables:
  """Variables with no two entries alike, batch statistics included.

  Drawn by NumPy: `blocks.init` takes seconds to compile.
  """
  return fill(blocks.shapes(network, image_shape), seed)


def fill(shapes: Any, seed=0) -> Any:
  """Arrays of the shapes, of about the size that initialisers give them.

  No two entries are alike; what is not float32 is 0.
  """
  random = np.random.default_rng(seed)

  def one(path, leaf):
    if leaf.dtype != jnp.float32:
      return jnp.asarray(np.zeros(leaf.shape, leaf.dtype))
    u = random.uniform(-1, 1, leaf.shape)
    if len(leaf.shape) > 1:
      u *= np.sqrt(6 / np.prod(leaf.shape[:-1]))
    elif path[-1].key in ('scale', 'var'):
      u = 1 + 0.5 * u
    else:
      u *= 0.5
    return jnp.asarray(u, jnp.float32)

  return jax.tree.map_with_path(one, shapes)


def images(
  examples: int, image_shape: tuple[int, int, int] = IMAGE_SHAPE, seed=0
) -> tuple[np.ndarray, np.ndarray]:
  """uint8 images and int32 labels, both random."""
  random = np.random.default_rng(seed)
  return (
    random.integers(0, 256, (examples, *image_shape), np.uint8),
    random.integers(0, CLASSES, examples, np.int32),
  )


def same(one, two) -> bool:
  """Whether two trees hold the same bits."""
  ours, theirs = jax.tree.flatten(one), jax.tree.flatten(two)
  return ours[1] == theirs[1] and all(
    np.array_equal(a, b) and a.dtype == b.dtype
    for a, b in zip(map(np.asarray, ours[0]), map(np.asarray, theirs[0]))
  )


def close(one, two, rtol=1e-5, atol=1e-6) -> None:
  """Asserts that two trees are alike to rounding."""
  assert jax.tree.structure(one) == jax.tree.structure(two)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    one,
    two,
  )
