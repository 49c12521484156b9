"""What a streamed run can't do, found before anything runs."""

from typing import TYPE_CHECKING

from cbkd_jax.errors import UserError

if TYPE_CHECKING:
  from cbkd_jax.experiment import Experiment

_CROP = "data.crop = 'random_resized'"
_STREAM = "data.pipeline = 'stream'"


def check(experiment: 'Experiment') -> None:
  """Refuses fields that don't go with how the data are read.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  data = experiment.config['data']
  crops = data['crop'] == 'random_resized'
  if data['pipeline'] == 'resident':
    if crops:
      raise UserError(
        f"{_CROP}: must be 'none' with data.pipeline = 'resident'; only "
        "'stream' crops what it reads"
      )
    return
  for name in ('pad', 'resize') if crops else ():
    if data[name]:
      raise UserError(
        f'data.{name} = {data[name]}: must be 0 with {_CROP}, which crops and '
        'scales'
      )
  for name in 'mean', 'std':
    if not data[name]:
      raise UserError(
        f'data.{name} = (): must be given with {_STREAM}: it would have to be '
        'measured on all images, as python -m cbkd_jax.inspect_data does'
      )
  for name in 'prefix', 'thaw':
    if experiment.config['cache'][name]:
      raise UserError(
        f'cache.{name} = True: must be False with {_STREAM}: what is kept of '
        "each image is for sets that data.pipeline = 'resident' holds"
      )
  phases = [('teacher', experiment.teacher_objective())]
  phases += [(s.name, experiment.objective(s)) for s in experiment.stages]
  for phase, objective in phases:
    for term in objective.terms:
      method = term.method
      if 'train_labels' in method.needs:
        raise UserError(
          f'{phase}: {_STREAM}: must be resident for {method.name}, which '
          'needs the labels of all training examples'
        )
      if crops and 'second_view' in method.needs:
        raise UserError(
          f"{phase}: {_CROP}: must be 'none' for {method.name}, which looks at "
          'two views of an image, and a stream crops it once'
        )
