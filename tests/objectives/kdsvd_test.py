"""KDSVD against published numbers, and where singular values coincide."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import kdsvd, singular
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(maps):
  return View(None, tuple(maps), (), None)


def method(blocks=2, **options):
  return kdsvd.SingularValueDecomposition(
    setting=Setting(blocks=blocks), **options
  )


@pytest.mark.parametrize(
  ('name', 'form', 'layers'),
  [
    ('rep_k2_sizes_differ', 'repdistiller', 2),
    ('md_k1_f32', 'mdistiller', 3),
  ],
)
def test_published(name, form, layers):
  """The teacher's vectors are ours, in the signs that torch gave them."""

  def build(get):
    return [published.feature(get(f'student_feat_{i}')) for i in range(layers)]

  def loss(student, case):
    teacher = []
    for i in range(layers):
      x = jnp.asarray(published.feature(case[f'teacher_feat_{i}']))
      found = singular.singular(kdsvd.matrix(x, form), int(case['hp_k']))
      reference = case[f'aux_teacher_v_{i}']
      signs = jnp.sign(jnp.sum(found[1] * reference, axis=1, keepdims=True))
      teacher.append((found[0], found[1] * signs))
    ours = [kdsvd.matrix(x, form) for x in student]
    return kdsvd.kdsvd_loss(ours, teacher)

  published.check(f'kdsvd__{name}', build, loss)


def test_by_hand():
  """Two layers of one singular vector each, over two channels."""
  student = jnp.asarray([[[3.0, 4.0]]]), jnp.asarray([[[5.0, 0.0]]])
  teacher = [
    (jnp.ones((1, 1)), jnp.asarray(v).reshape(1, 2, 1))
    for v in ([1.0, 0.0], [0.0, 1.0])
  ]
  # The student's vectors: (.6, .8) along (1, 0); (1, 0) has no part of (0, 1).
  theirs = [(0, 1), (0, 0), (1, 1), (1, 0)]
  ours = [(0, 0.6), (0, 0.8), (0, 0.6), (0, 0.8)]

  def rbf(pair):
    return math.exp(-((pair[0] - pair[1]) ** 2) / 8)

  expected = sum((rbf(s) - rbf(t)) ** 2 for s, t in zip(ours, theirs))
  value = float(jax.jit(kdsvd.kdsvd_loss)(student, teacher))
  assert value == pytest.approx(expected, rel=1e-5)


def value_and_grads(term):
  def loss(student, teacher):
    return term.loss({'params': {}}, view(student), view(teacher))[0]

  return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize('form', kdsvd.FORMS)
def test_zero_at_the_teacher_and_finite_everywhere(form):
  """Where singular values coincide, at best a subspace is defined."""
  call = value_and_grads(method(form=form))
  random = np.random.default_rng(1)
  shapes = (4, 2, 2, 4), (4, 2, 2, 5)
  maps = [jnp.asarray(random.normal(size=s), jnp.float32) for s in shapes]
  value, grads = call(maps, maps)
  assert value < 1e-10
  assert max(np.abs(g).max() for g in grads) < 1e-5

  # No map, an identity, entries alike, and a large identity.
  hard = []
  for *_, channels in shapes:
    identity = np.eye(4, channels).reshape(1, 2, 2, channels)
    alike = np.ones_like(identity)
    rows = 0 * alike, identity, alike, 1e20 * identity
    hard.append(jnp.asarray(np.concatenate(rows), jnp.float32))
  for teacher in maps, hard:
    value, grads = call(hard, teacher)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
  assert call(hard, maps)[0] > 1e-4


def test_networks_between_which_it_works():
  def shapes(*sizes):
    return view(jax.ShapeDtypeStruct((2, *s), jnp.float32) for s in sizes)

  key = jax.random.key(0)
  student = shapes((8, 8, 3), (4, 4, 6))
  teacher = shapes((8, 8, 3), (2, 2, 8))
  params = method().init(key, student, teacher)['params']
  assert jax.tree.map(jnp.shape, params) == {
    'cut_1': {'kernel': (1, 1, 6, 8), 'bias': (8,)}
  }
  with pytest.raises(
    UserError,
    match=r"^kdsvd\.form = 'mdistiller': after block 1 .* 4 wide .* 2;",
  ):
    method(form='mdistiller').init(key, student, teacher)
  assert method(form='mdistiller').init(key, teacher, teacher) == {'params': {}}
  with pytest.raises(UserError, match=r'^kdsvd\.k = 4: after block 0 .* has 3'):
    method(k=4).init(key, student, teacher)
  with pytest.raises(
    UserError, match=r"^kdsvd\.form = 'x': must be one of 'rep"
  ):
    method(form='x')
