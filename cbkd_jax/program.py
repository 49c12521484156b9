"""A function that is compiled ahead of time, once for each set of shapes."""

import threading
import time
from collections.abc import Hashable
from typing import Any

import jax

from cbkd_jax.blocks import Tree


def signature(args: Tree) -> Hashable:
  """What a compiled program depends on: structure, shapes, types, placement.

  Args:
    args: arrays, or their shapes with their shardings.
  """
  leaves, structure = jax.tree.flatten(args)
  shapes = tuple(
    (x.shape, x.dtype, getattr(getattr(x, 'sharding', None), 'spec', None))
    for x in leaves
  )
  return structure, shapes


class Program:
  """A function that is compiled once for each set of shapes.

  Attributes:
    fn: the function itself, for use inside of another.
    options: XLA's, by name.
    compile_seconds: spent in tracing and compiling, of all shapes.
  """

  def __init__(self, fn: Any, options: dict[str, Any] | None):
    self.compile_seconds = 0.0
    self.fn, self.options = fn, options
    self._compiled: dict[Any, jax.stages.Compiled] = {}
    self._lock = threading.Lock()

  def lower(self, *args: Any) -> jax.stages.Lowered:
    """Traced for arguments, or for their shapes."""
    return self.fn.lower(*args)

  def compiled(self, *args: Any) -> jax.stages.Compiled:
    """The compiled function; a second thread waits for the first one's.

    Args:
      *args: arrays as in a call, or their shapes with their shardings.
    """
    key = signature(args)
    with self._lock:
      if key not in self._compiled:
        began = time.monotonic()
        self._compiled[key] = self.lower(*args).compile(self.options)
        self.compile_seconds += time.monotonic() - began
      return self._compiled[key]

  def __call__(self, *args: Any) -> Any:
    return self.compiled(*args)(*args)


def peak_bytes(compiled: jax.stages.Compiled) -> int:
  """Bytes on a device: arguments, results and what is between."""
  sizes = compiled.memory_analysis()
  return (
    sizes.argument_size_in_bytes
    + sizes.output_size_in_bytes
    + sizes.temp_size_in_bytes
    - sizes.alias_size_in_bytes
  )
