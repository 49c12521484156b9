"""Whether a plan's objectives can do their work, found before anything runs."""

import functools
from typing import TYPE_CHECKING

import jax

from cbkd_jax import blocks, objectives, supply
from cbkd_jax.errors import UserError
from cbkd_jax.stages import Stage

if TYPE_CHECKING:
  from cbkd_jax.experiment import Experiment


def check(experiment: 'Experiment') -> None:
  """Refuses objectives that can't do their work in this plan.

  Raises:
    UserError: naming the stage.
  """
  predictor = None
  for stage in experiment.stages:
    try:
      _check_stage(experiment, stage)
    except UserError as error:
      raise UserError(f'{stage.name}: {error}') from None
    if stage.prepares:
      continue
    own = objectives.parse(stage.objective).predictor
    if predictor and not own and not stage.trained[-1]:
      raise UserError(
        f'{stage.name}: its objective lacks {predictor}, by which the stage '
        'before predicts, and the head that it has instead does not train here'
      )
    predictor = own and own.method.name


def _check_stage(experiment: 'Experiment', stage: Stage) -> None:
  """Lets a stage's methods look at the shapes that they will see.

  Raises:
    UserError: one can't work between these networks.
  """
  objective = experiment.objective(stage, local=True)
  methods = [term.method for term in objective.terms]
  if not objective.setting.preparing and all(
    method.prepares == 'blocks' and method.has_pre_stage for method in methods
  ):
    raise UserError(
      f'{objective} is the objective of a pre-stage; without another term, '
      "such as 'ce', nothing is left to minimise after it"
    )
  if not objective.uses_teacher:
    return
  teacher, image_shape = experiment.local.network(), experiment.image_shape
  student = experiment.network(stage, local=True)
  ours, theirs = (
    blocks.view_shapes(network, image_shape, objective.local_batch)
    for network in (student, teacher)
  )
  head = blocks.shapes(teacher, image_shape).params[-1]
  supply.check(objective, teacher, head)
  if objective.predictor and teacher.ends_pooled(image_shape):
    raise UserError(
      f'{objective.predictor.method.name}: the deepest block of this '
      "teacher.model ends with pooling, which must be the head's"
    )
  init = functools.partial(objective.init, jax.random.key(0))
  jax.eval_shape(init, ours, theirs)
