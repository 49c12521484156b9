"""Weights from and to PyTorch: published teachers come in, and go out again.

`files` reads and writes state dicts, `naming` says which of their tensors is
which of our arrays, `matching` compares the two, `report` shows it, `teachers`
keeps the result where `config.teacher.checkpoint` finds it.
"""

from cbkd_jax.weights.files import read, write

__all__ = ['read', 'write']
