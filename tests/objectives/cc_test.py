"""CC against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import cc
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def test_published():
  published.check(
    'cc__rep_embeddings',
    lambda get: get('student_feat_0'),
    lambda s, case: cc.cc_loss(s, case['teacher_feat_0']),
  )


def test_published_with_its_embeddings():
  def build(get):
    params = {
      name: {
        'linear': {
          'kernel': published.dense(get(f'{name}.linear.weight')),
          'bias': get(f'{name}.linear.bias'),
        }
      }
      for name in ('embed_s', 'embed_t')
    }
    return get('student_feat_0'), {'pooled': params}

  def loss(tree, case):
    student, params = tree
    method = cc.CorrelationCongruence(dimension=int(case['hp_feat_dim']))
    teacher = jnp.asarray(case['teacher_feat_0'])
    return method.loss(
      {'params': params},
      View(None, None, None, student),
      View(None, None, None, teacher),
    )

  published.check('cc__rep_with_linear_embed', build, loss)


def test_by_hand():
  # Errors (1, 2), (3, 0), (1, 1): products 3 + 0 and 3 + 0.
  student = np.asarray([[1, -2], [-3, 0], [1, 1]], np.float32)
  value_and_grad = jax.jit(jax.value_and_grad(cc.cc_loss))
  value, grad = value_and_grad(student, 0 * student)
  assert value == 3
  # An error of 0 has no sign: entry 1 of the second example.
  np.testing.assert_array_equal(grad, [[1.5, 0], [-1, 0], [1.5, 0]])
  value, grad = value_and_grad(student, student)
  assert value == 0
  np.testing.assert_array_equal(grad, 0 * student)
  value, grad = value_and_grad(student[:1], 0 * student[:1])
  assert value == 0
  np.testing.assert_array_equal(grad, 0 * student[:1])


def test_variables():
  method = cc.CorrelationCongruence(
    at=(0, 1), setting=Setting(blocks=2, trained=(0, 1))
  )

  def view(*shapes):
    maps = tuple(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    return View(None, maps, None, jax.ShapeDtypeStruct((2, 9), jnp.float32))

  def kernels(method, student_view, teacher_view):
    def init(rng):
      return method.init(rng, student_view, teacher_view)

    params = jax.eval_shape(init, jax.random.key(0))['params']
    return {
      f'{place}/{name}': tree['linear']['kernel'].shape
      for place, trees in params.items()
      for name, tree in trees.items()
    }

  ours = view((2, 4, 4, 3), (2, 2, 2, 5))
  theirs = view((2, 4, 4, 6), (2, 2, 2, 7))
  assert kernels(method, ours, theirs) == {
    'cut_0/embed_s': (48, 128),
    'cut_0/embed_t': (96, 128),
    'cut_1/embed_s': (20, 128),
    'cut_1/embed_t': (28, 128),
  }
  assert kernels(cc.CorrelationCongruence(dimension=4), ours, theirs) == {
    'pooled/embed_s': (9, 4),
    'pooled/embed_t': (9, 4),
  }


def test_an_embedding_is_drawn_as_torch_draws_it():
  init = jax.jit(cc.Embedding(128).init)
  params = init(jax.random.key(0), jnp.ones((2, 5, 5)))['params']['linear']
  assert params['kernel'].shape == (25, 128)
  for x in params.values():
    assert 0.18 < np.max(x) < 0.2
    assert -0.2 < np.min(x) < -0.18


def test_bad_dimension():
  with pytest.raises(UserError, match=r'cc\.dimension = 0: must be above 0'):
    cc.CorrelationCongruence(dimension=0)
