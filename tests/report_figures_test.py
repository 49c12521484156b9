"""The report's figures: what is drawn where, in which words and numbers."""

import base64
import csv
import dataclasses
import io
import itertools
import re
import types

import cv2
import numpy as np
import pytest
import report_data
from matplotlib import colors

from cbkd_jax.reporting import (
  accuracy_figure,
  analysis,
  cka_figure,
  classes_figure,
  confusion_figures,
  costs_figure,
  groups,
  labels,
  losses_figure,
  network_figure,
  picture,
  planned,
  runs_figure,
  style,
  tables,
  vector,
  wording,
)
from cbkd_jax.reporting.style import LIGHT, NARROW, WIDE

SPACE = '\N{NO-BREAK SPACE}'
MINUS = '\N{MINUS SIGN}'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return report_data.write_run(
    tmp_path_factory.mktemp('figures') / 'run', report_data.summary()
  )


@pytest.fixture(scope='module')
def network(run):
  plan = planned.plan(run)
  accuracies = {phase['name']: phase['accuracy'] for phase in run.phases[:3]}
  return network_figure.network(plan, accuracies)


@pytest.mark.parametrize('size', [NARROW, WIDE])
def test_areas_are_parameters(network, size):
  with style.settings(size):
    figure = network.draw(size)
  found = {LIGHT.teacher: [], LIGHT.student: []}
  for patch in figure.axes[0].patches:
    x, y, wide, high = patch.get_bbox().bounds
    color = colors.to_hex(patch.get_facecolor())
    # Of a frozen block the tint; of one that trains, all of it. No key.
    if color in found and patch.get_zorder() == 3:
      found[color].append((y + high / 2, x, wide * high))
  areas = {
    color: [area for _, _, area in sorted(blocks)]
    for color, blocks in found.items()
  }
  unit = areas[LIGHT.teacher][0] / 400  # of the teacher's first block
  for color, params in (
    (LIGHT.teacher, (400, 1200, 5000, 400, 1200, 400, 400)),
    (LIGHT.student, (500, 300, 500, 300, 500)),
  ):
    assert areas[color] == pytest.approx([unit * n for n in params])


def test_the_networks_rows(network):
  rows = [
    (r['row'], r['block'], r['network'], r['trained'], r['params'])
    for r in network.rows
  ]
  assert len(rows) == 4 * 3
  assert rows[:3] == [
    ('teacher', 0, 'teacher', False, 400),
    ('teacher', 1, 'teacher', False, 1200),
    ('teacher', 2, 'teacher', False, 5000),
  ]
  assert rows[3:6] == [
    ('stage_1', 0, 'teacher', False, 400),
    ('stage_1', 1, 'teacher', False, 1200),
    ('stage_1', 2, 'student', True, 500),
  ]
  assert rows[6:9] == [
    ('stage_2', 0, 'teacher', False, 400),
    ('stage_2', 1, 'student', True, 300),
    ('stage_2', 2, 'student', False, 500),
  ]
  assert all(trained for *_, trained, _ in rows[9:])
  assert network.says == (
    '6.6k parameters become 1.2k; block 2, which holds 76% of the teacher, '
    'shrinks most: 10.0 times.'
  )


def test_an_svg_has_the_pages_colours_and_ids_of_its_own(network):
  with style.settings(NARROW):
    figure = network.draw(NARROW)
    text = vector.svg(figure, 'a-key', 'what <it> "says"')
  assert 'aria-label="what &lt;it&gt; &quot;says&quot;"' in text
  for role in 'paper', 'ink', 'faint', 'teacher', 'student':
    assert f'var(--{role})' in text
  left = set(re.findall('#[0-9a-f]{6}', text))
  assert not left & {*LIGHT}
  ids = re.findall(' id="([^"]*)"', text)
  assert ids
  assert all(name.startswith('a-key-') for name in ids)
  used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
  assert used == set(ids)
  assert '>stage 1</text>' in text
  assert 'DejaVu' not in text
  assert '<style' not in text


def test_losses_are_a_line_per_term(run):
  found = losses_figure.losses(run)
  curves = losses_figure._curves(run.metrics, 'teacher')
  assert list(curves) == ['loss']  # whose only term it is
  curves = losses_figure._curves(run.metrics, 'stage_1')
  assert list(curves) == ['loss', 'ce', 'kd']
  assert curves['kd'] == ([2, 4, 6], [3.0, 1.5, 1.0])
  with style.settings(WIDE):
    figure = found.draw(WIDE)
  titles = [axes.get_title(loc='left') for axes in figure.axes]
  assert titles == ['teacher', 'stage 1', 'stage 2', 'thaw']
  kd = [
    line
    for line in figure.axes[1].lines
    if line.get_color() == style.OTHERS[1] and len(line.get_xdata())
  ]
  assert [list(line.get_ydata()) for line in kd] == [[3.0, 1.5, 1.0]]
  assert 'In the thaw the loss falls from 2.8 to 0.933' in found.says


def test_losses_that_are_no_numbers_are_left_out(run):
  nan = float('nan')
  rows = [
    {'stage': 'teacher', 'step': 1, 'loss': 1.0, 'ce': 1.0},
    {'stage': 'stage_1', 'step': 1, 'loss': 2.0, 'kd': 3.0},
    {'stage': 'stage_1', 'step': 2, 'loss': nan, 'kd': nan},
    {'stage': 'stage_2', 'step': 1, 'loss': nan, 'kd': nan},
  ]
  found = losses_figure.losses(dataclasses.replace(run, metrics=rows))
  assert found.says == 'In stage 1 the loss stands at 2.'
  with style.settings(NARROW):
    assert len(found.draw(NARROW).axes) == 2
  assert [row['step'] for row in found.rows] == [1, 1, 2, 1]
  nothing = dataclasses.replace(run, metrics=rows[3:])
  assert losses_figure.losses(nothing) is None


def test_smoothing_is_a_mean_of_neighbours():
  values = np.random.default_rng(0).normal(size=100)
  expected = [values[max(0, i - 2) : i + 3].mean() for i in range(100)]
  assert losses_figure._smooth(values) == pytest.approx(expected)


def test_accuracy_in_words(run):
  found = accuracy_figure.accuracy(groups.group([run]))
  assert found.says == (
    f'After the thaw the student has 92.50{SPACE}%, 2.50{SPACE}points below '
    f'the teacher; it was lowest after stage 2, 81.25{SPACE}%.'
  )


def test_a_run_that_is_not_finished_does_not_end_highest(tmp_path):
  low, high = (
    report_data.write_run(
      tmp_path / name,
      report_data.summary((0.95, 0.5, 0.5, accuracy)),
      inherit=inherit,
    )
    for name, accuracy, inherit in (('low', 0.5, 1), ('high', 0.9, 2))
  )
  both = groups.group([low, high])
  assert accuracy_figure.accuracy(both).says == (
    f'high ends highest, at 90.00{SPACE}%; low lowest, at 50.00{SPACE}%; '
    f'the teacher has 95.00{SPACE}%.'
  )
  high = dataclasses.replace(high, summary=None, finished=False)
  both = groups.group([low, high])
  assert accuracy_figure.accuracy(both).says == (
    f'low ends highest, at 50.00{SPACE}%; the teacher has 95.00{SPACE}%.'
  )
  low = dataclasses.replace(low, summary=None, finished=False)
  both = groups.group([low, high])
  assert accuracy_figure.accuracy(both).says == (
    f'No run is finished; the teacher has 95.00{SPACE}%.'
  )


def test_costs_in_words_and_numbers(run):
  blocks = costs_figure.blocks_of(planned.plan(run), None)
  found = costs_figure.costs(blocks)
  assert found.says == (
    'In all, the student has 5.50x fewer parameters and 5.50x fewer FLOPs.'
  )
  measured = costs_figure.blocks_of(None, report_data.analysed())
  table = tables.blocks(
    type('', (), {'plan': None, 'analysis': report_data.analysed()})
  )
  assert table.rows[-1][:4] == ['all', '6.6k', '1.2k', '÷5.5']
  # Of twice the milliseconds for each parameter.
  assert table.rows[-1][7:10] == ['1.65e+03 ms', '600 ms', '÷2.75']
  assert table.rows[0][7:10] == ['100 ms', '200 ms', 'x2']
  assert costs_figure.sums(measured, 'params') == (6600, 1200)


def test_cka_that_is_not_defined_everywhere():
  fields = report_data.analysed().__dict__
  found = cka_figure.cka(analysis.Analysis(**fields))
  assert found.says == (
    'The features are least alike after block 1: 0.750; at the end, pooled, '
    'they are at 0.875.'
  )
  undefined = (('block 0', -0.0625), ('block 1', float('nan')))
  found = cka_figure.cka(analysis.Analysis(**{**fields, 'cka': undefined}))
  with style.settings(NARROW):
    axes = found.draw(NARROW).axes[0]
  assert [text.get_text() for text in axes.texts] == ['-0.062', 'none']
  assert axes.get_xlim()[0] == -0.0625
  assert 'least alike at the end, block 0: -0.062' in found.says
  assert cka_figure.cka(analysis.Analysis(**{**fields, 'cka': ()})) is None


def test_short_names_of_classes_are_not_alike():
  def names(*class_names):
    found = types.SimpleNamespace(class_names=class_names)
    return confusion_figures._short_names(found, 9)

  assert names('cat', 'a long name 1', '') == ['cat', 'a long…1', '2']
  assert names('class <1> ü', 'class <2> ü', 'dog') == [
    '0 clas…ü',
    '1 clas…ü',
    '2 dog',
  ]


def test_confusions_against_brute_force():
  analysed = report_data.analysed([f'class {i}' for i in range(25)], 7)
  expected = []
  for i, j in itertools.permutations(range(25), 2):
    own = analysed.labels == i
    student = int((analysed.student_predictions[own] == j).sum())
    teacher = int((analysed.teacher_predictions[own] == j).sum())
    if student:
      expected.append((i, j, student, teacher))
  expected.sort(key=lambda p: (-p[2], p[0]))
  found = confusion_figures.pairs(analysed)
  assert [tuple(pair) for pair in found] == expected
  said = confusion_figures.confusion(analysed).says
  wrong = sum(p[2] for p in expected)
  assert said.startswith(
    f'The student is wrong on {wrong} of 175 images, 50 of'
  )
  assert said.endswith('most often, 5 times, it takes "class 4" for "class 5".')
  listed = confusion_figures.confused(analysed)
  assert len(listed.rows) == len(expected)
  # 5 classes of 5 mistakes, 5 of 4 and 2 of 3, of 75; the teacher's are 1 each.
  assert "68% of the student's mistakes: 51, where" in listed.says
  assert listed.says.endswith('where the teacher makes 12.')
  assert (
    confusion_figures.confused(report_data.analysed()) is None
  )  # few classes


def test_what_classes_lose():
  found = classes_figure.drops(report_data.analysed())
  assert [row['label'] for row in found.rows] == [4, 3, 2, 1, 0, 5]
  first = found.rows[0]
  assert (first['teacher_accuracy'], first['student_accuracy']) == (0.95, 0.75)
  assert found.says.startswith('4 of 6 classes lose accuracy, 0 gain, 2 stay;')
  assert found.says.endswith(f'loses most, 20.0 points of 95.00{SPACE}%.')
  with style.settings(NARROW):
    figure = found.draw(NARROW)
  texts = [text.get_text() for text in figure.axes[0].texts]
  assert texts == [
    f'{MINUS}20.0',
    f'{MINUS}15.0',
    f'{MINUS}10.0',
    f'{MINUS}5.0',
    '0',
    '0',
  ]


def test_any_name_comes_back_from_a_csv():
  found = confusion_figures.confusion(report_data.analysed())
  rows = list(csv.DictReader(io.StringIO(found.csv(), newline='')))
  names = {int(row['label']): row['class'] for row in rows}
  assert tuple(names[i] for i in range(6)) == report_data.NASTY
  for row in rows:
    if row['label'] == '4':
      expected = {'4': '15', '5': '5'}[row['predicted']]
      assert row['student'] == expected


def test_a_class_without_examples_is_left_out():
  analysed = report_data.analysed([*'abc'], 4)
  names = (*analysed.class_names, 'never')
  grown = {
    key: np.pad(getattr(analysed, key), (0, 1), constant_values=np.nan)
    for key in ('teacher_class_accuracy', 'student_class_accuracy')
  }
  fields = {**analysed.__dict__, **grown, 'class_names': names}
  found = classes_figure.drops(type(analysed)(**fields))
  assert len(found.rows) == 3
  assert 'of 3 classes' in found.says


def test_labels_of_points_are_not_on_one_another(tmp_path):
  records = [
    report_data.write_run(
      tmp_path / f'run_{i}',
      report_data.summary((0.95, 0.9, 0.8, 0.925 - 0.001 * i)),
      batch_size=16 + i,
    )
    for i in range(5)
  ]
  found = runs_figure.size_and_accuracy(groups.group(records))
  assert [row['run'] for row in found.rows] == [
    'teacher',
    *(f'run_{i}' for i in range(5)),
  ]
  for size in NARROW, WIDE:
    with style.settings(size):
      figure = found.draw(size)
      figure.draw_without_rendering()
      texts = figure.axes[0].texts
      boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) == 6
    for one, other in itertools.combinations(boxes, 2):
      assert not one.overlaps(other)
    assert all(figure.bbox.containsx(b.x0) for b in boxes)
    assert all(figure.bbox.containsx(b.x1) for b in boxes)


def test_spread():
  assert labels.spread([5, 1, 9], 2, 0, 10) == [5, 1, 9]  # far enough apart
  found = labels.spread([4, 4.5, 4, 9.9], 1, 0, 10)
  assert sorted(found)[-1] == 9.9
  gaps = np.diff(sorted(found))
  assert gaps.min() >= 1 - 1e-9
  assert [found[0] < found[1], found[2] < found[1]] == [True, True]
  assert labels.spread([9, 9, 9], 4, 0, 10) == pytest.approx([2, 6, 10])
  assert labels.spread([1, 1, 1], 40, 0, 10) == pytest.approx([0, 5, 10])


def test_shortened():
  assert style.shortened('twelve chars', 12) == 'twelve chars'
  found = style.shortened('class number 123456', 12)
  assert len(found) <= 12
  assert found.startswith('class n')
  assert found.endswith('456')


@pytest.mark.parametrize(
  ('said', 'expected'),
  [
    (wording.percent(0.98765), f'98.77{SPACE}%'),
    (wording.percent(None), ''),
    (wording.points(0.9, 0.95), f'{MINUS}5.00{SPACE}points'),
    (wording.points(0.95, 0.9), f'+5.00{SPACE}points'),
    (wording.points(0.9, 0.900001), f'±0.00{SPACE}points'),
    (wording.against(0.9, 0.95, 'it'), f'5.00{SPACE}points below it'),
    (wording.against(0.9, 0.9, 'it'), 'level with it'),
    (wording.ratio(10, 4), '÷2.5'),
    (wording.ratio(4, 10), 'x2.5'),
    (wording.ratio(4, 4), 'same'),
    (wording.ratio(4, 0), ''),
  ],
)
def test_wording(said, expected):
  assert said == expected


@pytest.mark.parametrize('channels', [1, 2, 3])
def test_a_picture_comes_back(channels):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (8, 6, channels), np.uint8)
  kind, _, text = picture.data_uri(image).partition(',')
  assert kind == 'data:image/png;base64'
  found = cv2.imdecode(
    np.frombuffer(base64.b64decode(text), np.uint8), cv2.IMREAD_UNCHANGED
  )
  if channels == 3:
    np.testing.assert_array_equal(found[..., ::-1], image)
  else:
    np.testing.assert_array_equal(found, image.mean(-1).round())


def test_a_large_picture_is_made_small():
  image = np.full((300, 600, 3), (10, 200, 30), np.uint8)
  text = picture.data_uri(image).partition(',')[2]
  found = cv2.imdecode(np.frombuffer(base64.b64decode(text), np.uint8), 1)
  assert found.shape == (56, 112, 3)
  assert tuple(found[5, 5, ::-1]) == (10, 200, 30)


def test_a_confusions_cells_are_label_by_answer():
  analysed = report_data.analysed(['a', 'b', 'c'], 7)
  drawn = confusion_figures.confusion(analysed)
  with style.settings(WIDE):
    axes = drawn.draw(WIDE).axes[0]
  shown = {
    tuple(map(round, text.get_position())): text.get_text()
    for text in axes.texts
  }
  wrong = analysed.confusion - np.diag(np.diag(analysed.confusion))
  assert (wrong != wrong.T).any()
  for (i, j), count in np.ndenumerate(analysed.confusion):
    if count:
      assert shown[j, i] == f'{count:,}'


def test_ckas_lines_end_at_its_values():
  drawn = cka_figure.cka(report_data.analysed())
  with style.settings(WIDE):
    axes = drawn.draw(WIDE).axes[0]
  ends = [
    line.get_xdata()[-1] for line in axes.lines if len(line.get_xdata()) == 2
  ]
  values = [value for _, value in report_data.analysed().cka]
  assert ends[: len(values)] == pytest.approx(values)
