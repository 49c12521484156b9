"""Counterclockwise block-wise knowledge distillation (CBKD) in JAX/Flax.

Teacher and student are lists of blocks. Block by block, from the deepest to
the shallowest, one teacher block gives way to a compressed student block,
which alone trains while all others stay frozen; a last stage, the thaw,
trains everything. Any distillation objective can be minimised in any stage.

Lan, Zeng, Wei, Zhang, Wang, Huang, He: "Counterclockwise block-by-block
knowledge distillation for neural network compression", Scientific Reports
15:11369 (2025), doi 10.1038/s41598-025-91152-3.
"""

import time
from typing import Any

__version__ = '0.1.0'
BEGAN = time.monotonic()  # for `wall`: what follows is importing


def __getattr__(name: str) -> Any:
  # Importing the package stays cheap; JAX comes with what needs it.
  if name == 'load_student':
    from cbkd_jax.student import load_student

    return load_student
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
