"""Distillation methods, one file each, and the objective they add up to."""

from cbkd_jax.objectives.catalog import METHODS
from cbkd_jax.objectives.expression import parse, split
from cbkd_jax.objectives.method import Method, Setting
from cbkd_jax.objectives.objective import Objective, Term

__all__ = [
  'METHODS',
  'Method',
  'Objective',
  'Setting',
  'Term',
  'parse',
  'split',
]
