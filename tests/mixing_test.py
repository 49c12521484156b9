"""Mixup and CutMix: the weights by plain loops, and what a step then sees."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cbkd_jax import objectives, step, supply
from cbkd_jax.data import augment, mixing, sampler
from cbkd_jax.replicas import AXIS
from cbkd_jax.stages import Training

pytestmark = pytest.mark.usefixtures('quick_compilation')

HEIGHT, WIDTH = 6, 9
TRAIN_SIZE, BATCH = 60, 8


def test_a_coin_decides_between_shares_and_boxes():
  augmentation = dataclasses.replace(tiny.PLAIN, mixup=0.4, cutmix=1.0)
  keys = jax.random.split(jax.random.key(0), 2000)
  draw = functools.partial(
    mixing.weights, augmentation=augmentation, height=HEIGHT, width=WIDTH
  )
  found, shares = map(np.asarray, jax.jit(jax.vmap(draw))(keys))
  np.testing.assert_allclose(found.mean((1, 2)), shares, atol=1e-6)
  boxes = ((found == 0) | (found == 1)).all((1, 2))
  assert 900 < boxes.sum() < 1100
  # Every pixel is in some box and none in all; some boxes are empty.
  inside = 1 - found[boxes].mean(0)
  assert inside.min() > 0.05
  assert inside.max() < 0.6
  assert shares[boxes].max() == 1
  assert shares[boxes].min() < 0.5
  blended, shares = found[~boxes], shares[~boxes]
  assert (blended == shares[:, None, None]).all()
  # Beta(0.4, 0.4): mean 1/2, variance 1/(4 * 1.8), far from the uniform 1/12.
  assert shares.mean() == pytest.approx(0.5, abs=0.04)
  assert shares.var() == pytest.approx(1 / 7.2, rel=0.07)


def test_boxes_by_hand():
  shares = np.random.default_rng(0).uniform(size=300).astype(np.float32)
  shares[:2] = 0, 1
  centres = np.stack([np.arange(300) % HEIGHT, np.arange(300) // 7 % WIDTH], 1)
  box = jax.vmap(mixing._box, (0, 0, None, None))
  found = jax.jit(lambda *args: box(*args, HEIGHT, WIDTH))(centres, shares)
  for (y, x), share, weights, area in zip(
    centres, shares, *map(np.asarray, found), strict=True
  ):
    side = np.sqrt(np.float32(1) - share)
    rows, columns = int(HEIGHT * side) // 2, int(WIDTH * side) // 2
    expected = np.ones((HEIGHT, WIDTH), np.float32)
    for i in range(y - rows, y + rows):
      for j in range(x - columns, x + columns):
        if 0 <= i < HEIGHT and 0 <= j < WIDTH:
          expected[i, j] = 0
    np.testing.assert_array_equal(weights, expected)
    assert area == (expected == 0).sum()


@functools.cache
def program(replicas, streamed=False):
  """`(step, indices [replicas, local_batch]) -> what a step sees`."""
  setting = objectives.Setting(
    blocks=1,
    trained=(0,),
    name='thaw',
    steps=9,
    batch_size=BATCH,
    train_size=TRAIN_SIZE,
    replicas=replicas,
    axis_name=AXIS,
  )
  plain = step.StepSpec(
    student=None,
    teacher=None,
    objective=objectives.parse('ce').bind(setting),
    training=Training(steps=9),
    trained=(True,),
    shared=0,
    augmentation=dataclasses.replace(
      tiny.PLAIN, flip=True, alternating_flip=True, cutout=3
    ),
    image_shape=tiny.IMAGE_SHAPE,
  )
  both = dataclasses.replace(plain.augmentation, mixup=1.0, cutmix=1.0)
  both = dataclasses.replace(plain, augmentation=both)
  images = jnp.asarray(tiny.images(TRAIN_SIZE)[0])
  labels = jnp.arange(TRAIN_SIZE)  # every image is its own class

  def see(at, indices):
    rng = jax.random.key_data(jax.random.key(7))
    state = step.TrainState(at, (), (), {}, (), rng)
    data, drawn = step.Resident(images, labels), step.Drawn(indices)
    if streamed:
      own = step.Examples(images[indices], labels[indices])
      data, drawn = step.Resident(None, None), drawn._replace(examples=own)
    arguments = state, None, data, drawn
    shown = step.make_batch(plain, *arguments)
    assert shown.available['mixed'] is None
    batch = step.make_batch(both, *arguments)
    others, share = batch.available['mixed']
    share = jnp.full(len(others), share)
    return shown.x, batch.x, batch.available['labels'], others, share

  # Replicas on one device: the step's own test has them on several.
  return jax.jit(jax.vmap(see, (None, 0), axis_name=AXIS))


def look(at, replicas=1, streamed=False):
  """Images as they are and mixed, labels, partners' labels, own shares."""
  indices = sampler.indices(0, TRAIN_SIZE, BATCH, at, 1)
  run = program(replicas, streamed)
  found = run(jnp.int32(at), indices.reshape(replicas, -1))
  return [np.asarray(f).reshape(BATCH, *f.shape[2:]) for f in found]


def test_a_step_mixes_what_the_slots_of_the_batch_show():
  boxes, shares = [], []
  for at in range(4, 12):  # step 7 ends an epoch
    shown, mixed, labels, others, (share, *same) = look(at)
    assert len(set(labels)) == BATCH
    assert same == [share] * (BATCH - 1)
    # Each is somebody's partner.
    assert sorted(others) == sorted(labels)
    assert not np.array_equal(others, labels)
    slots = [labels.tolist().index(other) for other in others]
    theirs = shown[slots]
    blended = share * shown + (1 - share) * theirs
    boxes.append(not np.allclose(mixed, blended, atol=1e-5))
    shares.append(share)
    if boxes[-1]:
      box = (abs(mixed - shown) > 1e-5).any((0, -1))
      assert box.mean() == pytest.approx(1 - share, abs=1e-6)
      blended = np.where(box[..., None], theirs, shown)
    np.testing.assert_allclose(mixed, blended, rtol=1e-5, atol=1e-6)
  # One of the two in each step, every time anew.
  assert set(boxes) == {False, True}
  assert len(set(shares)) == 8


def test_one_replica_is_four_replicas():
  for at in 6, 7:
    for one, four in zip(look(at), look(at, replicas=4), strict=True):
      np.testing.assert_array_equal(one, four)


def test_replicas_see_each_others_images_where_none_holds_the_split():
  for at in 6, 7:
    streamed = look(at, replicas=4, streamed=True)
    for mine, theirs in zip(look(at, replicas=4), streamed, strict=True):
      np.testing.assert_array_equal(mine, theirs)


def test_purposes_of_a_steps_key_differ():
  purposes = {
    supply._EXAMPLES,
    supply._SECOND_VIEW,
    augment._CUTOUT,
    mixing._MIXING,
  }
  assert len(purposes) == 4
  assert min(purposes) > 2**31  # positions in a batch are below
