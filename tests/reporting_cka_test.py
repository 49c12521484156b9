"""Linear CKA against its definitions, in float64."""

import itertools
import math

import jax
import numpy as np
import pytest
import tiny

from cbkd_jax import blocks, finished_run
from cbkd_jax.data import Dataset, Split
from cbkd_jax.data.augment import normalise
from cbkd_jax.reporting import cka

pytestmark = pytest.mark.usefixtures('quick_compilation')


def _draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def test_hsic_is_the_u_statistic():
  """Song et al. (2012), theorem 2: the mean over all ordered quadruples."""
  x, y = _draw(7, 3), _draw(7, 5, seed=1)
  k, m = x @ x.T, y @ y.T
  terms = [
    k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q])
    for i, j, q, r in itertools.permutations(range(7), 4)
  ]
  assert cka.hsic(k, m) == pytest.approx(np.mean(terms), rel=1e-12)
  assert cka.hsic(k, m) == pytest.approx(cka.hsic(m, k), rel=1e-12)


def test_many_examples_give_kornblith_s_value():
  """Equation 5 there, the biased estimate: the two meet at large n."""
  x = _draw(800, 4)
  y = x @ _draw(4, 6, seed=1) + _draw(800, 6, seed=2)
  a, b = x - x.mean(0), y - y.mean(0)
  expected = np.linalg.norm(b.T @ a) ** 2 / (
    np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)
  )
  assert 0.3 < expected < 0.9
  assert _cka(x, y) == pytest.approx(expected, abs=4e-3)


def _cka(x, y):
  return cka.alignment(cka.products(x @ x.T, y @ y.T))


def test_what_it_is_blind_to_and_what_not():
  x = _draw(30, 8) * np.arange(1, 9)  # not the same in all directions
  rotation, _ = np.linalg.qr(_draw(8, 8, seed=1))
  assert _cka(x, x) == pytest.approx(1, abs=1e-12)
  assert _cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-9)
  assert _cka(x, x * np.arange(8, 0, -1) ** 2) < 0.9
  # Independent features: about 0, and below as easily as above it.
  found = [_cka(_draw(30, 8, seed=s), _draw(30, 8, seed=99)) for s in range(40)]
  assert abs(np.mean(found)) < 0.03
  assert min(found) < 0 < max(found)


def test_gram_matrices_of_large_features_keep_their_differences():
  x = _draw(12, 3, 3, 2) + 1000
  found = np.asarray(cka.gram(x.astype(np.float32)), np.float64)
  flat = x.astype(np.float32).astype(np.float64).reshape(12, -1)
  flat -= flat.mean(0)
  expected = flat @ flat.T
  ours, exact = cka.hsic(found, found), cka.hsic(expected, expected)
  assert ours == pytest.approx(exact, rel=1e-5)


def test_features_that_never_change_have_none():
  same = np.asarray(cka.gram(np.full((9, 4), 0.1, np.float32)))
  assert np.all(same == 0)
  assert math.isnan(cka.alignment(cka.products(same, np.eye(9))))


@pytest.mark.parametrize(
  ('examples', 'numbers', 'expected'),
  [
    (1000, 10, (250, 4)),
    (360, 10, (180, 2)),
    (1000, 2**20, (62, 16)),  # 2^26 numbers are 64 images
    (9, 2**30, (4, 2)),
  ],
)
def test_batches_are_alike_and_fit(examples, numbers, expected):
  assert cka.batches(examples, numbers) == expected


def test_two_networks_cut_by_cut(monkeypatch):
  """Batches of 8, drawn from the split, against float64 by hand."""
  monkeypatch.setattr(cka, '_BATCH', 8)
  architecture = tiny.architecture()
  networks = (
    architecture.network(),
    tiny.student(architecture).network(np.float32, folded=True),
  )
  models = [
    finished_run.Model(network, tiny.draw(network, seed=seed))
    for seed, network in enumerate(networks)
  ]
  test = Split(*tiny.images(20))
  dataset = Dataset('tiny', tiny.CLASSES, test, None, test, ('a', 'b', 'c'))
  run = finished_run.Finished(
    {}, *models, tiny.PLAIN, dataset, tiny.IMAGE_SHAPE
  )
  found, looked_at = cka.compare(run, 19)
  assert looked_at == 18
  drawn = np.random.default_rng(0).permutation(20)[:18].reshape(3, 6)
  x = normalise(test.images, tiny.PLAIN)
  views = [
    jax.jit(lambda v, x, n=n: blocks.view(blocks.run(n, v, x)[0]))(v, x)
    for n, v in models
  ]
  cuts = {f'block {i}': lambda v, i=i: v.features[i] for i in range(3)}
  cuts['pooled'] = lambda v: v.pooled
  assert list(found) == list(cuts)
  for name, cut in cuts.items():
    x, y = (np.asarray(cut(v), np.float64).reshape(20, -1) for v in views)
    sums = np.zeros(3)
    for rows in drawn:
      sums += cka.products(x[rows] @ x[rows].T, y[rows] @ y[rows].T)
    expected = sums[0] / np.sqrt(sums[1] * sums[2])
    assert found[name] == pytest.approx(expected, rel=1e-4)
  assert found['block 0'] != pytest.approx(1, abs=0.01)
  assert cka.compare(run, 3) == ({}, 0)
