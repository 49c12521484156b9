"""Schedules and updates against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cbkd_jax.optimizer import learning_rate_fn, make_optimizer
from cbkd_jax.stages import Training

pytestmark = pytest.mark.usefixtures('quick_compilation')

RATE = 0.1


def rates(steps, at, **fields):
  fn = learning_rate_fn(Training(steps=steps, **fields))
  return [float(fn(i)) for i in at]


def test_cosine_goes_from_its_peak_to_zero():
  half = RATE * 0.5 * (1 + np.cos(np.pi * 0.25))
  np.testing.assert_allclose(
    rates(8, (0, 2, 4, 8), schedule='cosine'),
    [0.1, half, 0.05, 0],
    rtol=1e-6,
    atol=1e-9,
  )


def test_warmup_rises_linearly_then_the_cosine_begins():
  # 2 of 10 steps of warm-up, the cosine over the other 8.
  np.testing.assert_allclose(
    rates(10, (0, 1, 2, 6, 10), schedule='cosine', warmup=0.2),
    [0, 0.05, 0.1, 0.05, 0],
    rtol=1e-6,
    atol=1e-9,
  )


@pytest.mark.parametrize('warmup', [0.0, 0.2])
def test_milestones_count_from_the_phases_start(warmup):
  found = rates(
    10,
    (4, 5, 7, 8, 9),
    schedule='step',
    milestones=(0.5, 0.8),
    decay=0.1,
    warmup=warmup,
  )
  np.testing.assert_allclose(found, [0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-5)


def test_two_milestones_at_one_step_both_count():
  fields = {'schedule': 'step', 'decay': 0.5}
  found = rates(10, (4, 5), milestones=(0.5, 0.52), **fields)
  np.testing.assert_allclose(found, [0.1, 0.025], rtol=1e-6)


def test_constant():
  assert (
    rates(10, (0, 9), schedule='constant') == [pytest.approx(0.1, rel=1e-6)] * 2
  )
  found = rates(10, (0, 2, 4, 9), schedule='constant', warmup=0.4)
  np.testing.assert_allclose(found, [0, 0.05, 0.1, 0.1], rtol=1e-6)


@pytest.mark.parametrize('schedule', ['cosine', 'step', 'constant'])
@pytest.mark.parametrize('warmup', [0.0, 0.5, 1.0])
def test_one_step_is_finite(schedule, warmup):
  found = rates(1, (0, 1), schedule=schedule, warmup=warmup, milestones=(0.5,))
  assert np.isfinite(found).all()
  assert min(found) >= 0


def parts():
  """Three parts; the middle one trains."""
  random = np.random.default_rng(0)
  return tuple(
    {'kernel': random.normal(size=(3, 4)), 'bias': random.normal(size=4)}
    for _ in range(3)
  )


TRAINED = (False, True, False)


def on_device(tree):
  return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def take_steps(training, params, grads, trained=TRAINED):
  tx = make_optimizer(training, trained)
  params, grads = on_device(params), on_device(grads)
  state = tx.init(params)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  if training.optimizer == 'muon':  # so many operations are worth a program
    step = jax.jit(step)
  for g in grads:
    params, state = step(params, state, g)
  return params, state


def flat(part):
  return np.concatenate([part['bias'].ravel(), part['kernel'].ravel()])


def sgd_by_hand(w, grads, rates, clip, decay, momentum, nesterov):
  v = 0
  for g, rate in zip(grads, rates):
    if clip:
      g = g * min(1, clip / np.linalg.norm(g))
    g = g + decay * w
    v = momentum * v + g
    w = w - rate * (g + momentum * v if nesterov else v)
  return w


@pytest.mark.parametrize('nesterov', [True, False])
@pytest.mark.parametrize('clip', [0.0, 0.5, 100.0])
def test_sgd_by_hand(nesterov, clip):
  random = np.random.default_rng(1)
  params = parts()
  grads = [
    jax.tree.map(lambda x: random.normal(size=x.shape), params)
    for _ in range(3)
  ]
  training = Training(
    steps=3,
    schedule='step',
    milestones=(0.6,),
    weight_decay=0.01,
    clip_norm=clip,
    nesterov=nesterov,
  )
  after, _ = take_steps(training, params, grads)
  expected = sgd_by_hand(
    flat(params[1]),
    [flat(g[1]) for g in grads],
    [0.1, 0.1, 0.01],
    clip,
    0.01,
    0.9,
    nesterov,
  )
  np.testing.assert_allclose(flat(after[1]), expected, rtol=1e-5, atol=1e-6)
  for i in (0, 2):
    assert np.array_equal(flat(after[i]), flat(on_device(params)[i]))


def test_adamw_by_hand():
  random = np.random.default_rng(2)
  params = parts()
  grads = [
    jax.tree.map(lambda x: random.normal(size=x.shape), params)
    for _ in range(3)
  ]
  training = Training(
    steps=3, optimizer='adamw', schedule='constant', weight_decay=0.01
  )
  after, _ = take_steps(training, params, grads)
  w, m, v = flat(params[1]), 0, 0
  for t, g in enumerate(grads, 1):
    g = flat(g[1])
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    w = w - 0.1 * (step + 0.01 * w)
  np.testing.assert_allclose(flat(after[1]), w, rtol=1e-5, atol=1e-5)
  for i in (0, 2):
    assert np.array_equal(flat(after[i]), flat(on_device(params)[i]))


MUON = Training(
  steps=3,
  optimizer='muon',
  schedule='constant',
  learning_rate=0.01,
  momentum=0.8,
  weight_decay=0.05,
)


def orthogonal(x):
  """Five steps of the quintic Newton-Schulz iteration on a wide matrix."""
  x = x / np.linalg.norm(x)
  for _ in range(5):
    a = x @ x.T
    x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
  return x


def test_muon_by_hand():
  """A 3x3 convolution is a matrix, a dense kernel too; the rest is AdamW's."""
  random = np.random.default_rng(3)
  shapes = {'conv': (3, 3, 2, 5), 'dense': (5, 4), 'bias': (5,)}

  def draw():
    return {k: {'kernel': random.normal(size=s)} for k, s in shapes.items()}

  part, grads = draw(), [draw() for _ in range(3)]
  # A square or a stack of matrices by another name is no kernel.
  part['gate'] = {'w': random.normal(size=(4, 4))}
  for g in grads:
    g['gate'] = {'w': random.normal(size=(4, 4))}
  after, _ = take_steps(MUON, (part,), [(g,) for g in grads], (True,))

  for name in 'conv', 'dense':
    w = part[name]['kernel'].reshape(-1, shapes[name][-1])
    m = 0
    for t, g in enumerate(grads, 1):
      g = g[name]['kernel'].reshape(w.shape)
      m = 0.8 * m + 0.2 * g
      update = 0.8 * m / (1 - 0.8 ** (t + 1)) + 0.2 * g / (1 - 0.8**t)
      # The iteration is the same on both sides of a transpose.
      update = orthogonal(update.T).T * 0.2 * np.sqrt(max(w.shape))
      w = w - 0.01 * (update + 0.05 * w)
    found = after[0][name]['kernel']
    assert found.shape == shapes[name]
    np.testing.assert_allclose(
      np.reshape(found, w.shape), w, rtol=1e-4, atol=1e-5
    )

  for name, leaf in ('bias', 'kernel'), ('gate', 'w'):
    w, m, v = part[name][leaf], 0, 0
    for t, g in enumerate(grads, 1):
      g = g[name][leaf]
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
      step = 0.9 * m / (1 - 0.9 ** (t + 1)) + 0.1 * g / (1 - 0.9**t)
      step = step / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
      w = w - 0.01 * (step + 0.05 * w)
    np.testing.assert_allclose(after[0][name][leaf], w, rtol=1e-4, atol=1e-5)


def test_muon_on_a_convolution_is_optaxs_on_the_matrix():
  random = np.random.default_rng(4)
  w, *grads = jnp.asarray(random.normal(size=(3, 3, 3, 2, 7)), jnp.float32)
  after, _ = take_steps(
    MUON, ({'kernel': w},), [({'kernel': g},) for g in grads], (True,)
  )
  tx = optax.contrib.muon(0.01, beta=0.8, weight_decay=0.05, consistent_rms=0.2)
  w = w.reshape(18, 7)
  state = tx.init(w)
  for g in grads:
    updates, state = tx.update(g.reshape(18, 7), state, w)
    w = w + updates
  np.testing.assert_allclose(
    after[0]['kernel'].reshape(18, 7), w, rtol=1e-5, atol=1e-6
  )


@pytest.mark.parametrize('optimizer', ['sgd', 'adamw', 'muon'])
def test_frozen_gradients_do_not_matter(optimizer):
  params = parts()
  grads = jax.tree.map(lambda x: 10 * np.ones_like(x), params)
  training = Training(
    steps=1, optimizer=optimizer, clip_norm=1.0, weight_decay=0.01
  )
  one, _ = take_steps(training, params, [grads])
  frozen = jax.tree.map(lambda x: 100 * x, grads)
  two, _ = take_steps(training, params, [(frozen[0], grads[1], frozen[2])])
  assert np.array_equal(flat(one[1]), flat(two[1]))
  assert not np.array_equal(flat(one[1]), flat(on_device(params)[1]))


def leaves(tree):
  return sum(x.size for x in jax.tree.leaves(tree) if x.ndim)


@pytest.mark.parametrize(
  ('optimizer', 'of_kernel', 'of_bias', 'more'),
  [('sgd', 1, 1, 0), ('adamw', 2, 2, 0), ('muon', 1, 2, 3)],
)
@pytest.mark.parametrize('trained', [TRAINED, (True,) * 3, (False,) * 3])
def test_no_state_for_frozen_parts(
  optimizer, of_kernel, of_bias, more, trained
):
  params = on_device(parts())
  training = Training(
    steps=1, optimizer=optimizer, clip_norm=1.0, weight_decay=0.01
  )
  state = make_optimizer(training, trained).init(params)
  # `more` is what there is once: the coefficients of Muon's iteration.
  expected = (12 * of_kernel + 4 * of_bias) * sum(trained) + more
  assert leaves(state) == expected


def test_sgd_without_momentum_holds_no_state():
  training = Training(steps=1, momentum=0.0, nesterov=False)
  _, state = take_steps(training, parts(), [parts()])
  assert leaves(state) == 0


def test_a_mask_of_another_length_raises():
  params = on_device(parts())
  with pytest.raises(ValueError, match='different lengths'):
    make_optimizer(Training(steps=1), (True, False)).init(params)


@pytest.mark.parametrize(
  ('name', 'leaf', 'shape'),
  [
    ('sgd', 'w', (2,)),
    ('adamw', 'w', (2,)),
    ('muon', 'w', (2,)),
    ('muon', 'kernel', (1, 2)),
  ],
)
def test_an_entry_at_a_learning_rate_of_its_own(name, leaf, shape):
  """Its updates are a third, decay and momentum included."""
  training = Training(
    steps=4, optimizer=name, learning_rate=0.3, weight_decay=0.1
  )
  w = jnp.asarray([1.0, -2.0]).reshape(shape)
  params = ({leaf: w}, {'slow': {leaf: w}, 'same': {leaf: w}})
  tx = make_optimizer(training, (True, True), {'slow': 0.1})
  state = tx.init(params)
  for _ in range(3):
    grads = jax.tree.map(lambda p: 0.5 * p + 1, ({leaf: w}, params[1]))
    grads[1]['slow'] = grads[1]['same'] = grads[0]
    updates, state = tx.update(grads, state, params)
    one = updates[1]['same'][leaf]
    np.testing.assert_array_equal(one, updates[0][leaf])
    np.testing.assert_allclose(updates[1]['slow'][leaf], one / 3, rtol=1e-6)
    assert np.abs(one).min() > 0
