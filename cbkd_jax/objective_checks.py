"""Whether a plan's objectives can do their work, found before anything runs."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from cbkd_jax import blocks, objectives, supply
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.method import BatchWise, Method
from cbkd_jax.stages import Stage

if TYPE_CHECKING:
  from cbkd_jax.experiment import Experiment


def check(experiment: 'Experiment') -> None:
  """Refuses objectives that can't do their work in this plan.

  Raises:
    UserError: naming the stage.
  """
  _check_teacher(experiment)
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


def _check_teacher(experiment: 'Experiment') -> None:
  """Refuses what can't train a teacher.

  Raises:
    UserError: naming the field and its value.
  """
  objective = experiment.teacher_objective()
  given = f'teacher.objective = {experiment.config["teacher"]["objective"]!r}'
  distilling = [t.key for t in objective.terms if t.method.uses_teacher]
  if distilling:
    raise UserError(
      f'{given}: must use no teacher, but {distilling[0]} does; allowed: '
      "sums of such as 'ce' and 'ce(label_smoothing=0.1)'"
    )
  try:
    _check_mixing(experiment.config['data'], objective)
  except UserError as error:
    raise UserError(f'{given}: {error}') from None


# What belongs to a single unmixed image.
_UNMIXED = ('labels', 'train_labels', 'indices', 'second_view')


def _check_mixing(
  data: Mapping[str, Any], objective: objectives.Objective
) -> None:
  """Refuses methods that can't work with mixed images.

  Raises:
    UserError: naming the field, its value and the method.
  """
  mixing = [f'data.{n} = {data[n]}' for n in ('mixup', 'cutmix') if data[n]]
  if not mixing:
    return
  for term in objective.terms:
    needs = term.method.needs
    found = [name for name in _UNMIXED if name in needs]
    if found and 'mixed' not in needs:
      raise UserError(
        f'{" and ".join(mixing)}: must be 0 for {term.method.name}, which '
        f'needs the {found[0]} of images that are not mixed'
      )


def _check_examples(methods: Sequence[Method]) -> None:
  """Refuses relations between too few examples: nothing would be learned.

  Raises:
    UserError: naming the method, what it sees and what it needs.
  """
  for method in methods:
    if not isinstance(method, BatchWise):
      continue
    setting, least = method.setting, method.least_examples
    if method.examples < least:
      raise UserError(
        f'batch_size = {setting.batch_size}, micro_batches = '
        f'{setting.micro_batches}: {method.name} sees {method.examples} '
        f'example(s) at once, and must see at least {least}'
      )


def _check_stage(experiment: 'Experiment', stage: Stage) -> None:
  """Lets a stage's methods look at the shapes that they will see.

  Raises:
    UserError: one can't work between these networks.
  """
  objective = experiment.objective(stage, local=True)
  _check_mixing(experiment.config['data'], objective)
  methods = [term.method for term in objective.terms]
  if not objective.setting.preparing and all(
    method.prepares == 'blocks' and method.has_pre_stage for method in methods
  ):
    raise UserError(
      f'{objective} is the objective of a pre-stage; without another term, '
      "such as 'ce', nothing is left to minimise after it"
    )
  image_shape = experiment.image_shape
  student = experiment.network(stage, local=True)
  # A family may refuse the student's widths.
  blocks.shapes(student, image_shape)
  if not objective.uses_teacher:
    return
  _check_examples(methods)
  teacher = experiment.local.network()
  ours, theirs = (
    blocks.view_shapes(network, image_shape, objective.micro_batch)
    for network in (student, teacher)
  )
  head = blocks.shapes(teacher, image_shape).params[-1]
  supply.check(objective, teacher, head)
  if objective.predictor and not teacher.head_reads_features(image_shape):
    raise UserError(
      f'{objective.predictor.method.name}: the head of this teacher.model '
      'must read the features of the deepest block, but reads what that makes '
      'of them (pooled features, or tokens)'
    )
  init = functools.partial(objective.init, jax.random.key(0))
  jax.eval_shape(init, ours, theirs)
