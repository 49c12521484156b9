"""All methods by name. A further one is a file, and two lines here."""

from cbkd_jax.objectives import (
  at,
  ce,
  kd,
  vid,
)
from cbkd_jax.objectives.method import Method

METHODS: dict[str, type[Method]] = {
  method.name: method
  for method in (
    ce.CrossEntropy,
    kd.KnowledgeDistillation,
    at.AttentionTransfer,
    vid.VariationalInformationDistillation,
  )
}
