"""What another run must have in common with this one."""

import types

import pytest
import tiny_run

from cbkd_jax import adoption, shared_teacher, workdir
from cbkd_jax.errors import UserError


def test_a_field_that_an_older_version_did_not_know(tmp_path):
  older = tiny_run.values()
  del older['data']['cutout'], older['teacher']['objective']
  workdir.write_json(tmp_path / 'config.json', older)

  def check(**changes):
    exp = types.SimpleNamespace(config=tiny_run.values(**changes))
    adoption._check_same(exp, tmp_path, 'other', ['data.cutout', 'data.pad'])

  check()
  with pytest.raises(UserError, match=r'has data.cutout = 0, but here it is 3'):
    check(data__cutout=3)


def test_a_teacher_of_an_older_version_is_found_again():
  older, now = tiny_run.values(), tiny_run.values()
  del older['data']['mixup'], older['teacher']['objective']
  of_teacher = shared_teacher._of_teacher
  assert of_teacher(older) == of_teacher(now)
  smoothed = tiny_run.values(teacher__objective='ce(label_smoothing=0.1)')
  assert of_teacher(older) != of_teacher(smoothed)


def test_a_teacher_of_other_images_of_ones_own_is_another():
  """The name is 'folder' for all; prepared sets may be moved."""
  of_teacher = shared_teacher._of_teacher
  for name, is_same in ('folder', False), ('cifar10', True):
    one, other = (
      of_teacher(tiny_run.values(data__name=name, data__dir=where))
      for where in ('here', 'there')
    )
    assert (one == other) == is_same
