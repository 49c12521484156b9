"""How a file's logits are compared with the network's; by hand."""

import dataclasses

import numpy as np
import pytest

from cbkd_jax import data, faithful

LOGITS = np.array([[4.0, 0, -8], [1, 2, 3], [0, 5, 1], [3, 1, 2]])
REFERENCE = faithful.Reference(
  of='student',
  dataset='set',
  split='test[:4]',
  images=np.zeros((4, 1, 1, 1), np.uint8),
  labels=np.array([0, 2, 1, 1]),
  logits=LOGITS,
)


def judge(logits, int8=False, tolerance=None):
  return faithful.judge(REFERENCE, logits, int8=int8, tolerance=tolerance)


def test_a_small_difference():
  found = judge(LOGITS + np.array([[0], [-6e-4], [0], [0]]))
  assert found['accuracy'] == {
    'data': 'set',
    'split': 'test[:4]',
    'examples': 4,
    'before': 0.75,
    'after': 0.75,
  }
  check = found['check']
  assert check.pop('max_logit_difference') == pytest.approx(6e-4)
  assert check == {
    'images': 4,
    'top1_agreement': 1.0,
    'largest_logit': 8.0,
    'tolerance': 1e-4,
    'tolerance_of': 'max_logit_difference / largest_logit',
  }


def test_a_larger_one():
  logits = LOGITS + np.array([[0], [-9e-4], [0], [0]])
  with pytest.raises(
    faithful.Unfaithful,
    match=r'differs from the student by 0.0009 at logits up to 8, accuracy '
    r'0.7500 for 0.7500; --tolerance=0.0001',
  ):
    judge(logits)
  assert judge(logits, tolerance=1.2e-4)['check']['tolerance'] == 1.2e-4


def test_of_a_network_that_says_nothing():
  silent = dataclasses.replace(REFERENCE, logits=np.zeros((4, 3)))
  found = faithful.judge(silent, silent.logits, int8=False, tolerance=None)
  assert found['check']['largest_logit'] == 0
  with pytest.raises(faithful.Unfaithful):
    faithful.judge(silent, LOGITS, int8=False, tolerance=None)


def test_of_int8_the_accuracy_counts():
  better, worse = LOGITS.copy(), LOGITS.copy()
  better[3] = 0, 9, 0
  worse[1] = 9, 0, 0
  found = judge(better, int8=True)
  assert found['accuracy']['after'] == 1
  assert found['check']['top1_agreement'] == 0.75
  assert found['check']['max_logit_difference'] == 8
  assert found['check']['tolerance_of'] == 'lost accuracy'
  with pytest.raises(
    faithful.Unfaithful,
    match=r'accuracy 0.5000 for 0.7500; --tolerance=0.02 \(lost accuracy\)',
  ):
    judge(worse, int8=True)
  assert judge(worse, int8=True, tolerance=0.25)['accuracy']['after'] == 0.5


@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('int8', [False, True])
def test_not_finite_is_within_no_tolerance(value, int8):
  logits = LOGITS.copy()
  logits[1, 2] = value  # as before, it is the largest
  with pytest.raises(faithful.Unfaithful):
    judge(logits, int8=int8, tolerance=np.inf)


def test_logits_come_in_order_from_batches_of_two_sizes():
  images, sizes = np.arange(253)[:, None], []

  def run(batch):
    sizes.append(len(batch))
    return batch * 2

  assert np.array_equal(faithful.logits_of(run, images), images * 2)
  assert sizes == [1, 100, 100, 100]


def test_images_from_all_over_a_split():
  split = data.Split(np.arange(7), np.arange(7) * 10)
  images, labels = faithful.spread(split, 3)
  assert images.tolist() == [0, 2, 4]
  assert labels.tolist() == [0, 20, 40]
  assert len(faithful.spread(split, 100)[0]) == 7


def test_the_number_of_images(monkeypatch):
  monkeypatch.setattr(faithful, '_EXAMPLES', 3)
  split = data.Split(np.arange(7), np.arange(7))
  assert len(faithful.chosen(split, None)[0]) == 3
  assert len(faithful.chosen(split, 5)[0]) == 5
  assert len(faithful.chosen(split, 50)[0]) == 7
