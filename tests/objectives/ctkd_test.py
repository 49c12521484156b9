"""CTKD against published and hand-made numbers."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import ctkd
from cbkd_jax.objectives.ctkd import CurriculumTemperature

pytestmark = pytest.mark.usefixtures('quick_compilation')


def loss(tree, case, epoch=30.0):
  """The method's, at an epoch when lambda has arrived at its end."""
  s, global_t = tree
  method = CurriculumTemperature(
    t_start=float(case['hp_t_start']),
    t_end=float(case['hp_t_end']),
    lambda_min=float(case['hp_lambda_']),
  )
  views = (
    View(jnp.asarray(x), (), (), jnp.zeros(()))
    for x in (s, case['teacher_logits'])
  )
  value, metrics, state = method.loss(
    {'params': {'global_t': global_t}}, *views, epoch=jnp.float32(epoch)
  )
  assert state == {}
  return value, metrics


def scalar(x):
  return x.reshape(())


def test_published():
  published.check(
    'ctkd__lambda_minus1',
    lambda get: (get('student_logits'), scalar(get('global_T'))),
    loss,
  )


def test_published_in_float32():
  name = 'ctkd__f32'
  published.check(
    name,
    lambda get: get('student_logits'),
    lambda s, case: loss((s, jnp.asarray(scalar(case['global_T']))), case),
  )
  # The published float32 gradient of the temperature is good to 4e-3 only.
  case = golden.load(f'losses/{name}')
  with jax.enable_x64(True):
    tree = (
      jnp.asarray(case['student_logits'], jnp.float64),
      jnp.asarray(scalar(case['global_T']), jnp.float64),
    )
    (_, grad), metrics = jax.jit(
      jax.grad(lambda tree: loss(tree, case), has_aux=True)
    )(tree)
  np.testing.assert_allclose(grad, case['grad_global_T'][0], rtol=5e-3)
  np.testing.assert_allclose(
    metrics['temperature'], case['aux_temperature'][0], rtol=1e-6
  )


def test_lambda_follows_half_a_cosine():
  found = [
    float(ctkd.cosine_decay(jnp.float32(e), 0.0, -1.0, 10.0))
    for e in (0, 1, 5, 10, 240)
  ]
  first = (np.cos(np.pi / 10) - 1) / 2
  np.testing.assert_allclose(found, [0, first, -0.5, -1, -1], atol=1e-6)
  assert ctkd.cosine_decay(jnp.float32(1), 0.0, -1.0, 0.0) == -1.0


def test_the_gradient_is_scaled_and_the_value_is_not():
  def temperature(x, factor):
    return ctkd.ctkd_temperature(x, factor, 1.0, 20.0)

  x = jnp.float32(0.0)
  for factor in (1.0, -0.25, 0.0):
    value, grad = jax.value_and_grad(temperature)(x, factor)
    assert value == 11.0
    assert grad == pytest.approx(20 * 0.25 * factor)


def test_starts_at_the_published_temperature():
  logits = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  view = View(logits, (), (), logits)
  variables = CurriculumTemperature().init(jax.random.key(0), view, view)
  assert list(variables) == ['params']
  global_t = variables['params']['global_t']
  assert global_t.shape == ()
  assert global_t.dtype == jnp.float32
  # 1 + 20 sigmoid(1).
  assert ctkd.ctkd_temperature(global_t, -1.0) == pytest.approx(15.62117)


def test_finite_at_extremes_and_zero_with_itself():
  method = CurriculumTemperature()

  def total(tree, t):
    s, global_t = tree
    views = (View(x, (), (), x) for x in (s, t))
    return method.loss(
      {'params': {'global_t': global_t}}, *views, epoch=jnp.float32(10)
    )[0]

  s = jnp.asarray([[1e4, 0.0, -1e4], [0.0, 0.0, 0.0]])
  run = jax.jit(jax.value_and_grad(total))
  for global_t in (-200.0, 200.0):
    tree = (s, jnp.float32(global_t))
    value, grads = run(tree, s[:, ::-1])
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)
    value, grads = run(tree, s)
    assert value == 0
    for grad in grads:
      np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'t_start': 0.0}, r'^ctkd\.t_start = 0\.0: must be above 0$'),
    ({'t_end': -1.0}, r'^ctkd\.t_end = -1\.0: must be at least 0$'),
    ({'lambda_max': float('inf')}, r'^ctkd\.lambda_max = inf: must be finite$'),
    (
      {'lambda_min': 1.0},
      r'^ctkd\.lambda_min = 1\.0: must be at most lambda_max = 0\.0$',
    ),
    ({'learning_rate': 0.0}, r'^ctkd\.learning_rate = 0\.0: must be above 0$'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(UserError, match=message):
    CurriculumTemperature(**options)
