"""MODEL_CARD.md of runs that are not the plain one."""

import pytest
import report_data
import yaml

from cbkd_jax.reporting import card, page, record, section

SPACE = '\N{NO-BREAK SPACE}'


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
  assert str(tmp_path) not in text
  assert '--config.data.dir=DATA' in text
  assert '--workdir=WORKDIR' in text
  (directory / 'command.txt').write_text(
    'python -m cbkd_jax.train --workdir '
    "'/home/me/a run' --config.data.dir=/home/me/x.npz --config.seed=3\n"
  )
  again = _render(record.read(directory))
  assert '/home/me' not in again
  assert '--config.seed=3' in again
  assert 'x.npz: 96 training images' in body


def test_a_set_is_named_as_hubs_know_it(tmp_path):
  name = 'cifar10/clean:3.0.2'
  run = report_data.write_run(
    tmp_path / 'run', report_data.summary(), data__name=name
  )
  _, front, _ = _render(run).split('---\n', 2)
  assert yaml.safe_load(front)['datasets'] == ['cifar10']


def test_accuracy_in_int8_where_it_was_trained_for(tmp_path):
  summary = report_data.summary()
  plain = report_data.write_run(tmp_path / 'plain', summary)
  summary['student']['quantized_accuracy'] = 0.90625
  aware = report_data.write_run(tmp_path / 'aware', summary)
  line = "- With kernels and layers' inputs rounded to 8 bits, for which it"
  assert line not in _render(plain)
  assert f'{line} was trained: 90.62{SPACE}%.\n' in _render(aware)
  found = {tile['name']: tile for tile in page._tiles(aware.summary)}
  assert found['Accuracy in int8'] == {
    'name': 'Accuracy in int8',
    'value': f'90.62{SPACE}%',
    'more': f'in float 92.50{SPACE}%',
  }
  names = [tile['name'] for tile in page._tiles(plain.summary)]
  assert 'Accuracy in int8' not in names


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
