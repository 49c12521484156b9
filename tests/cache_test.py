"""What is looked up must be what would have been computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import batch, cache, objectives, step, views
from cbkd_jax.blocks import Variables
from cbkd_jax.data import sampler
from cbkd_jax.data.augment import Augmentation, normalise
from cbkd_jax.replicas import AXIS
from cbkd_jax.stages import Training

EXAMPLES, BATCH, VIEWS, STEPS = 10, 8, 3, 3

pytestmark = pytest.mark.usefixtures('quick_compilation')


def make(objective='ce + kd', trained=(0, 0, 1, 1), student=(0, 0, 1), **more):
  """A phase's spec, and the variables of its networks."""
  architecture = tiny.architecture(AXIS)
  setting = objectives.Setting(
    blocks=3,
    trained=tuple(i for i in range(3) if trained[i]),
    batch_size=BATCH,
    train_size=EXAMPLES,
    axis_name=AXIS,
  )
  shared = (*student, 1).index(1) if not trained[0] else 0
  spec = step.StepSpec(
    **{
      'student': tiny.hybrid(architecture, tuple(map(bool, student))),
      'teacher': architecture.network(),
      'objective': objectives.parse(objective).bind(setting),
      'training': Training(steps=STEPS, learning_rate=0.05),
      'trained': tuple(map(bool, trained)),
      'shared': shared,
      'augmentation': Augmentation(2, True, (0.5,), (0.25,)),
      'image_shape': tiny.IMAGE_SHAPE,
      'fixed_views': VIEWS,
    }
    | more
  )
  teacher = tiny.draw(spec.teacher)
  own = tiny.draw(spec.student, seed=1)
  both = zip(own, teacher)
  own = Variables(*((*t[:shared], *o[shared:]) for o, t in both))
  return spec, own, teacher


def begin(made, devices=1):
  """The devices, and on them the state, the teacher and the data."""
  spec, own, teacher = made
  replicas = step.Replicas('pmap', tuple(jax.devices()[:devices]))
  state = step.create_train_state(spec, own, teacher, jax.random.key(5))
  data = step.Resident(*tiny.images(EXAMPLES))
  return replicas, *map(replicas.put, (state, teacher, data))


def fill(made, begun, place='host', dtype='exact'):
  """The cache of a phase that has just begun, and its plan."""
  replicas, *arrays = begun
  plan = cache.plan(made[0], dtype, EXAMPLES)
  return plan, cache.fill(
    plan, place, made[0], *arrays, replicas=replicas, batch_size=7
  )


def take(made, place=None, devices=1):
  """Some steps, with a cache in `place` or without one."""
  spec = made[0]
  replicas, state, teacher, data = begun = begin(made, devices)
  kept = None
  if place:
    plan, kept = fill(made, begun, place)
    spec = cache.with_layout(spec, plan)
    if place == 'device':
      data = data._replace(cache=kept.rows)
  run = step.compiled_train(spec, replicas)
  metrics = []
  for i in range(STEPS):
    rows = sampler.rows(3, EXAMPLES, BATCH, i, 1, VIEWS)
    rows = np.ascontiguousarray(rows.reshape(1, devices, -1).swapaxes(0, 1))
    drawn = kept.draw(spec, rows) if kept else step.Drawn(rows)
    state, found = run(state, teacher, data, drawn)
    metrics.append(jax.device_get(jax.block_until_ready(found)))
  return jax.device_get(state), metrics, kept


def test_every_row_is_that_of_its_image_and_view():
  """Compared with the teacher run on each image by itself, cropped by hand."""
  made = spec, own, teacher = make()
  _, kept = fill(made, begin(made))
  images, _ = tiny.images(EXAMPLES)
  state = step.create_train_state(spec, own, teacher, jax.random.key(5))
  pad = spec.augmentation.pad
  padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  run = jax.jit(lambda x: views.frozen_outputs(spec, own, teacher, x))
  everything = []
  for row in range(VIEWS * EXAMPLES):
    view = batch.fixed_view(spec, state.rng, images, jnp.array([row]))
    image = np.asarray(normalise(padded[[row % EXAMPLES]], tiny.PLAIN)[0])
    crops = [
      image[r : r + 8, c : c + 8][:, ::flip]
      for r in range(2 * pad + 1)
      for c in range(2 * pad + 1)
      for flip in (1, -1)
    ]
    # A grey level is 0.016.
    off = [np.abs(np.asarray(view[0]) - crop).max() for crop in crops]
    assert min(off) < 1e-4
    everything.append(run(view))
  cut = np.concatenate([f.student[-1].output for f in everything])
  logits = np.concatenate([f.teacher.logits for f in everything])
  stored = [arrays['values'] for arrays in kept.rows.values()]
  maps, vectors = sorted(stored, key=lambda x: -x.ndim)
  np.testing.assert_allclose(maps, cut, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(vectors, logits, rtol=1e-5, atol=1e-6)
  # Rows of two images differ: one in another's place would be seen.
  flat = cut.reshape(VIEWS, EXAMPLES, 1, 1, -1)
  off = np.abs(flat - flat.reshape(1, 1, VIEWS, EXAMPLES, -1)).max(-1)
  other = ~np.eye(EXAMPLES, dtype=bool)
  assert off.transpose(0, 2, 1, 3)[:, :, other].min() > 0.01


@pytest.fixture(scope='module')
def computed():
  """The steps with fixed views, everything computed in each."""
  return take(make())


@pytest.mark.parametrize(
  ('place', 'devices'), [('device', 1), ('device', 4), ('host', 4)]
)
def test_steps_with_a_cache_are_those_without(computed, place, devices):
  state, metrics, kept = take(make(), place, devices)
  expected_state, expected, _ = computed
  for ours, theirs in zip(metrics, expected):
    tiny.close(ours, theirs, rtol=1e-4)
  tiny.close(state.params, expected_state.params, rtol=1e-4, atol=1e-5)
  tiny.close(state.batch_stats, expected_state.batch_stats, rtol=1e-4)
  assert kept.error == 0


@pytest.mark.thorough
def test_two_views_of_the_same_images():
  """A second view is the next of the image's fixed ones."""
  made = make('mlkd()')
  for ours, theirs in zip(take(made, 'host')[1], take(made)[1]):
    tiny.close(ours, theirs, rtol=1e-3)
  rows = np.array([0, 9, 10, 29])
  np.testing.assert_array_equal(
    batch.second_rows(rows, EXAMPLES, VIEWS), [10, 19, 20, 9]
  )


def test_the_thaw_looks_up_the_teacher_alone():
  made = make(trained=(1, 1, 1, 1), student=(0, 1, 1))
  expected = take(made)[1]
  state, metrics, kept = take(made, 'device')
  assert [x['values'].shape for x in kept.rows.values()] == [
    (VIEWS * EXAMPLES, tiny.CLASSES)
  ]
  for ours, theirs in zip(metrics, expected):
    tiny.close(ours, theirs, rtol=1e-4)
  assert int(state.step) == STEPS


def kept_shapes(*args, **more):
  """(student or teacher, shape of one row) of what is stored."""
  spec, own, teacher = make(*args, **more)
  found = cache.plan(spec, 'exact', EXAMPLES)
  frozen = jax.eval_shape(
    lambda x: views.frozen_outputs(spec, own, teacher, x),
    jnp.zeros((1, *tiny.IMAGE_SHAPE)),
  )
  leaves = jax.tree.leaves(frozen)
  of_student = len(jax.tree.leaves(frozen.student))
  shapes = [
    ('student' if i < of_student else 'teacher', leaves[i].shape[1:])
    for i in found.layout.sources
  ]
  size = sum(4 * int(np.prod(shape)) for _, shape in shapes)
  assert found.row_bytes == size
  assert found.bytes == VIEWS * EXAMPLES * size
  return shapes


def test_what_the_objective_does_not_look_at_is_not_kept():
  cut = ('student', (2, 2, 6))
  assert kept_shapes('ce') == [cut]
  assert kept_shapes('ce + kd') == [cut, ('teacher', (tiny.CLASSES,))]
  assert kept_shapes("fitnet(at='last')") == [cut, ('teacher', (2, 2, 8))]
  assert kept_shapes("fitnet(at='last') + kd") == [
    cut,
    ('teacher', (tiny.CLASSES,)),
    ('teacher', (2, 2, 8)),
  ]
  # Features of a frozen block that teacher and student share, kept once.
  shared = ('student', (4, 4, 6))
  assert kept_shapes('fsp()').count(shared) == 1
  # A clockwise stage: the student's own trained block is a constant too.
  assert kept_shapes(trained=(0, 0, 1, 0), student=(0, 1, 1)) == [
    cut,
    ('teacher', (tiny.CLASSES,)),
  ]


def test_rounded_maps_and_their_error():
  made = make()
  begun = begin(made)
  _, exact = fill(made, begun)
  (key,) = (k for k, v in exact.rows.items() if v['values'].ndim == 4)
  maps = exact.rows[key]['values']
  for dtype, bound in ('bfloat16', 2**-8), ('uint8', 1 / 255):
    _, kept = fill(made, begun, dtype=dtype)
    if dtype == 'uint8':
      arrays = kept.rows[key]
      back = arrays['low'] + arrays['codes'].astype(np.float32) * arrays['step']
      range_ = maps.max((1, 2)) - maps.min((1, 2))
      off = np.abs(back - maps).max((1, 2))
      assert (off <= range_ * bound * 0.5001 + 1e-6).all()
      assert arrays['codes'].dtype == np.uint8
    else:
      back = kept.rows[key]['values'].astype(np.float32)
      assert (np.abs(back - maps) <= np.abs(maps) * bound).all()
    error = np.sqrt(np.sum((back - maps) ** 2.0) / np.sum(maps**2.0))
    assert kept.error == pytest.approx(error, rel=1e-3)
    assert 1e-5 < kept.error < bound
    # Logits are kept as they are.
    for other, arrays in kept.rows.items():
      if other != key:
        np.testing.assert_array_equal(
          arrays['values'], exact.rows[other]['values']
        )


def test_what_fixed_views_are_made_by():
  full = Augmentation(4, True, (0.5,), (0.25,), True, 8, 0.2, 1.0)
  fixed = full.of_fixed_views(3)
  assert fixed == Augmentation(4, True, (0.5,), (0.25,), cutout=8)
  assert full.of_fixed_views(0) == Augmentation(0, False, (0.5,), (0.25,))
