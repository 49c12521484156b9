"""The network that predicts: a phase's student, or one with another head.

Some methods (SimKD) train a part of their own that the student needs to
predict. It becomes the student's head.
"""

import dataclasses
from typing import Any

from flax import linen as nn

from cbkd_jax.blocks import Network, Variables
from cbkd_jax.objectives import Objective


def network(
  objective: Objective, student: Network, head: nn.Module, width: int
) -> Network:
  """The student with the head that the objective gives it, if any.

  Args:
    objective: of the last phase.
    student: its network.
    head: the teacher's.
    width: channels of the teacher's deepest block.
  """
  term = objective.predictor
  if term is None:
    return student
  own = term.method.student_head(head, width)
  return dataclasses.replace(student, head=own)


def variables(
  objective: Objective,
  student: Variables,
  learned: tuple[Any, Any] | None,
  teacher: Variables | None,
) -> Variables:
  """The variables of `network`.

  Args:
    objective: of the last phase.
    student: its network's variables.
    learned: the objective's (params, state), by term.
    teacher: the teacher's; its head alone is looked at.
  """
  term = objective.predictor
  if term is None:
    return student
  params, state = learned
  own = {'params': params[term.key], 'state': state[term.key]}
  head = teacher.params[-1], teacher.batch_stats[-1]
  head_params, head_stats = term.method.head_variables(own, head)
  return Variables(
    (*student.params[:-1], head_params),
    (*student.batch_stats[:-1], head_stats),
  )
