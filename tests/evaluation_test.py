"""Figures of a network by brute force."""

import math

import jax
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, evaluation, step
from cbkd_jax.data import Split
from cbkd_jax.data.augment import normalise

pytestmark = pytest.mark.usefixtures('quick_compilation')

EXAMPLES = 13


@pytest.fixture(scope='module')
def case():
  network = tiny.architecture('batch').network()
  variables = tiny.draw(network)
  images, _ = tiny.images(EXAMPLES)
  expected = blocks.logits(network, variables, normalise(images, tiny.PLAIN))
  return network, variables, images, np.asarray(expected)


@pytest.mark.parametrize(
  ('spmd', 'devices', 'batch_size'),
  [
    *[('pmap', 1, size) for size in (1, 5, 13, 1000)],
    *[('pmap', 4, size) for size in (1, 8, 1000)],
    ('shard_map', 1, 5),
    ('shard_map', 4, 8),
    ('jit', 1, 5),
    ('jit', 4, 8),
  ],
)
def test_every_example_once(case, spmd, devices, batch_size):
  network, variables, images, expected = case
  replicas = step.Replicas(spmd, tuple(jax.devices()[:devices]))
  labels = np.arange(len(images), dtype=np.int32)
  logits, found = evaluation.predict(
    network,
    replicas.put(variables),
    Split(images, labels),
    tiny.PLAIN,
    replicas,
    batch_size,
  )
  assert logits.dtype == np.float64
  assert logits.shape == expected.shape
  np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(found, labels)


def softmax(logits):
  powers = [math.exp(x) for x in logits]
  return [p / sum(powers) for p in powers]


def test_scores_by_brute_force():
  random = np.random.default_rng(0)
  logits, labels = random.normal(size=(200, 12)), random.integers(0, 12, 200)
  # The right class is often among the best.
  logits[np.arange(200), labels] += 1
  first = top_5 = 0
  loss = 0.0
  for row, label in zip(logits, labels):
    order = sorted(range(12), key=lambda i: -row[i])
    first += order[0] == label
    top_5 += label in order[:5]
    loss -= math.log(softmax(row)[label])
  assert evaluation.scores(logits, labels) == pytest.approx(
    {
      'accuracy': first / 200,
      'top_5_accuracy': top_5 / 200,
      'cross_entropy': loss / 200,
    },
    rel=1e-9,
  )
  assert 0.1 < first / 200 < top_5 / 200 < 0.95


def test_top_5_is_for_more_than_ten_classes():
  logits, labels = np.eye(10), np.arange(10)
  found = evaluation.scores(logits, labels)
  assert set(found) == {'accuracy', 'cross_entropy'}
  assert found['accuracy'] == 1


def test_comparison_by_brute_force():
  student, teacher = np.random.default_rng(0).normal(size=(2, 50, 4))
  same, kl = 0, 0.0
  for s, t in zip(student, teacher):
    same += s.argmax() == t.argmax()
    kl += sum(
      q * math.log(q / p) for p, q in zip(softmax(s), softmax(t), strict=True)
    )
  found = evaluation.comparison(student, teacher)
  assert found == pytest.approx(
    {'agreement': same / 50, 'kl_to_teacher': kl / 50}, rel=1e-9
  )
  # Not the other way round.
  assert evaluation.comparison(teacher, student)['kl_to_teacher'] != (
    pytest.approx(kl / 50, rel=1e-3)
  )


def test_a_network_agrees_with_itself():
  logits = 1000 * np.random.default_rng(0).normal(size=(5, 3))
  assert evaluation.comparison(logits, logits) == {
    'agreement': 1.0,
    'kl_to_teacher': 0.0,
  }
