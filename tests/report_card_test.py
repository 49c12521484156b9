"""MODEL_CARD.md of runs that are not the plain one."""

import pytest
import report_data
import yaml

from cbkd_jax.reporting import card, record, section


def _render(found):
  return card.render(section.Section(found, None, None, (), ()))


def test_own_images_place_is_not_told(tmp_path):
  summary = report_data.summary()
  summary['dataset']['name'] = 'npz /home/me/x.npz'
  directory = report_data.write_run(
    tmp_path / 'run',
    summary,
    data__name='npz',
    data__dir='/home/me/x.npz',
  ).directory
  (directory / 'command.txt').write_text('python -m cbkd_jax.train\n')
  text = _render(record.read(directory))
  _, front, body = text.split('---\n', 2)
  front = yaml.safe_load(front)
  (result,) = front['model-index'][0]['results']
  assert result['dataset'] == {
    'type': 'npz',
    'name': 'x.npz',
    'split': 'test[:32]',
  }
  assert 'datasets' not in front
  assert '/home/me' not in text
  assert 'x.npz: 96 training images' in body


@pytest.mark.parametrize(
  ('order', 'says'),
  [
    ('counterclockwise', 'teacher,\nby counterclockwise block-wise'),
    ('joint', 'trained by knowledge distillation: `joint`, a control'),
    ('scratch', 'trained without it: `scratch`, a control'),
  ],
)
def test_how_the_student_came_about(tmp_path, order, says):
  accuracies = (0.9,) * (4 if order == 'counterclockwise' else 2)
  summary = report_data.summary(accuracies, order)
  found = report_data.write_run(tmp_path / 'run', summary, order=order)
  text = _render(found)
  assert says in text
  assert ('- knowledge-distillation' in text) == (order != 'scratch')
