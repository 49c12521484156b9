"""Weights from and to PyTorch: published teachers come in, and go out again.

`files` reads and writes state dicts, `naming` says which of their tensors is
which of our arrays, `matching` compares the two, `report` shows it, `teachers`
makes it a network's variables, `imported` keeps those where
`config.teacher.checkpoint` finds them, and writes them back.
"""
