"""Streams: which examples come when, in any number of processes."""

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from toy_set import toy, toy_images

from cbkd_jax import data
from cbkd_jax.data import sampler, streaming
from cbkd_jax.errors import UserError

TRAIN = 96
BATCH = 40  # batches end within epochs
WANTED = data.Wanted(
  'digits',
  train_split=f'train[:{TRAIN + 11}]',
  test_split='test[:30]',
  validation_size=11,
  image_shape=(8, 8, 1),
)


def opened(name='digits', **changes):
  return data.stream(dataclasses.replace(WANTED, name=name, **changes))


def opened_toy(directory, **changes):
  arguments = {
    'dir': str(directory),
    'train_split': 'train',
    'test_split': 'test',
    'validation_size': 0,
    'image_shape': (6, 4, 3),
  }
  return opened('toy', **arguments | changes)


def loaded():
  return data.load(WANTED)


def stream(split, steps=8, seed=5, batch_size=BATCH, slots=None):
  slots = np.arange(batch_size) if slots is None else np.asarray(slots)
  return streaming.Stream(split, seed, batch_size, slots, steps)


def read(source, first_step=0, workers=0, count=None, state=None):
  """Some batches, and Grain's state after them."""
  iterator = streaming.read_ahead(
    source, first_step=first_step, workers=workers, ahead=3
  )
  try:
    if state is not None:
      iterator.set_state(state)
    count = source.steps - first_step if count is None else count
    found = [streaming.next_batch(iterator) for _ in range(count)]
    return found, iterator.get_state()
  finally:
    iterator.close()


def same(found, expected):
  assert len(found) == len(expected)
  for ours, theirs in zip(found, expected):
    for mine, other in zip(ours, theirs):
      np.testing.assert_array_equal(mine, other)
      assert mine.dtype == other.dtype


def expected_batches(steps=8):
  """What a resident run would gather."""
  split = loaded().train
  rows = sampler.indices(5, TRAIN, BATCH, 0, steps)
  return [(split.images[r], split.labels[r]) for r in rows]


def test_a_stream_is_what_a_resident_run_gathers_and_goes_on_anywhere():
  source, expected = stream(opened().train), expected_batches()
  found, state = read(source, count=3)
  same(found, expected[:3])
  # Resumed by the step, which is all that a checkpoint holds.
  for first in 3, 7:
    same(read(source, first_step=first)[0], expected[first:])
  # And by Grain's own state.
  same(read(source, count=5, state=state)[0], expected[3:])
  iterator = streaming.read_ahead(source, first_step=8, workers=0, ahead=1)
  with pytest.raises(StopIteration):
    next(iterator)


def test_reader_processes_change_nothing():
  source, expected = stream(opened().train), expected_batches()
  iterator = streaming.read_ahead(source, first_step=1, workers=2, ahead=3)
  with contextlib.closing(iterator):
    found = [streaming.next_batch(iterator) for _ in range(3)]
    state = iterator.get_state()
    found += [streaming.next_batch(iterator) for _ in range(3)]
    same(found, expected[1:7])
    iterator.set_state(state)
    same([streaming.next_batch(iterator) for _ in range(2)], expected[4:6])


def test_another_number_of_readers_and_one_that_dies():
  source, expected = stream(opened().train, 99), expected_batches()
  iterator = streaming.read_ahead(source, first_step=4, workers=1, ahead=1)
  with contextlib.closing(iterator):
    same([streaming.next_batch(iterator)], expected[4:5])
    (reader,) = multiprocessing.active_children()
    os.kill(reader.pid, signal.SIGKILL)
    reader.join()
    with pytest.raises(UserError, match=r'^data\.workers: .* code -9') as error:
      # What it has read already still comes.
      list(iter(lambda: streaming.next_batch(iterator), None))
  assert '\n' not in str(error.value)


def test_processes_that_share_a_batch_read_its_slots_once():
  split, expected = opened().train, expected_batches(3)
  shares = [[0, 1, 2, 20, 21, 22], [*range(3, 20), *range(23, 40)]]
  for slots in shares:
    found, _ = read(stream(split, 3, slots=slots))
    same(found, [(images[slots], labels[slots]) for images, labels in expected])


@pytest.mark.parametrize('name', ['test', 'validation'])
def test_evaluation_sees_what_it_asks_for(name):
  split, whole = getattr(opened(), name), getattr(loaded(), name)
  assert len(split) == len(whole)
  # As two devices of one process ask, the last batch filled up.
  asked = [
    np.minimum(np.arange(start, start + 8), len(whole) - 1).reshape(2, 4)
    for start in range(0, len(whole), 8)
  ]
  same(list(split.batches(asked)), list(whole.batches(asked)))
  same(list(split.batches(asked[1:2])), list(whole.batches(asked[1:2])))


def test_crops_depend_on_the_position_in_the_stream_alone(tmp_path):
  shapes = [(20, 30, 3), (31, 17, 3)] * 10 + [(12, 18, 3)] * 5
  random = np.random.default_rng(0)
  images = [random.integers(0, 256, shape, np.uint8) for shape in shapes]
  toy(tmp_path, images=images, shape=(None, None, 3), labels=[0, 1] * 12 + [0])
  dataset = opened_toy(tmp_path, crop='random_resized', image_shape=(8, 10, 3))
  whole = read(stream(dataset.train, 5, batch_size=8))[0]
  for slots in [1, 6], [7]:
    source = stream(dataset.train, 5, batch_size=8, slots=slots)
    found, _ = read(source, first_step=2)
    same(found, [(i[slots], n[slots]) for i, n in whole[2:]])
  # The second epoch crops anew what the first one has seen, and so does
  # another seed's.
  ids = sampler.indices(5, 20, 8, 0, 5).ravel()
  stacked = np.concatenate([i for i, _ in whole])
  again = int(np.flatnonzero(ids == ids[0])[1])
  assert again >= 20
  assert (stacked[0] != stacked[again]).any()
  other, _ = dataset.train.read(ids[:1], 6, np.arange(1))
  assert (stacked[0] != other[0]).any()
  # Each part is a part of its image: its colours lie within.
  assert len({image.tobytes() for image in stacked}) == 40
  # Evaluation looks at the centre.
  centre, _ = dataset.test.read(np.arange(5))
  assert centre.shape == (5, 8, 10, 3)
  boxed = {
    cv2.resize(i[1:11, 2:15], (10, 8), interpolation=cv2.INTER_AREA).tobytes()
    for i in images[20:]
  }
  assert {c.tobytes() for c in centre} == boxed


def test_images_that_are_not_what_they_should_be(tmp_path):
  mixed = [*toy_images(20), *toy_images(5, (6, 8, 3))]
  toy(tmp_path / 'mixed', images=mixed, shape=(None, None, 3))
  with pytest.raises(UserError) as error:
    opened_toy(tmp_path / 'mixed')
  assert str(error.value) == (
    "data.crop = 'none': toy declares no single size of its images, (None, "
    'None, 3); set data.crop, or data.resize, which is 0'
  )
  opened_toy(tmp_path / 'mixed', resize=2, image_shape=(2, 2, 3))
  with pytest.raises(UserError) as error:
    opened(image_shape=(16, 16, 1))
  assert str(error.value) == (
    'data.image_shape = (16, 16, 1), but digits has (8, 8, 1); to take it as '
    "it is: --config.data.image_shape='(8,8,1)'"
  )
  with pytest.raises(UserError, match=r'but digits has \(8, 8, 1\);'):
    opened(image_shape=(8, 8, 3), crop='random_resized')
  toy(tmp_path / 'unlabelled', labels=[0] * 20 + [-1] * 5)
  with pytest.raises(UserError, match='toy has a label -1, but must have 0'):
    opened_toy(tmp_path / 'unlabelled')


def damaged(directory):
  """A set whose last train records can't be read."""
  records = next(toy(directory).glob('toy-train.array_record*'))
  whole = bytearray(records.read_bytes())
  # Records follow one another; those at the end are not the first one, which
  # is read at once.
  found = [i for i in range(len(whole)) if whole[i : i + 4] == b'IDAT']
  for i in found[10:]:
    whole[i : i + 30] = bytes(30)
  records.write_bytes(bytes(whole))
  return opened_toy(directory)


@pytest.mark.parametrize('workers', [0, 1])
def test_a_damaged_record_is_one_line(tmp_path, workers):
  source = stream(damaged(tmp_path).train, 3, batch_size=20)
  with pytest.raises(UserError) as error:
    read(source, workers=workers)
  message = str(error.value)
  assert message.startswith(
    f"data.name = 'toy': cannot read {tmp_path}/toy/1.0.0: "
  )
  assert '\n' not in message


_PARENT = """
import sys
if __name__ == '__main__':  # the reader imports this file too
  import multiprocessing
  sys.path.insert(0, {here!r})
  import streaming_test as t
  source = t.stream(t.opened().train, 9999)
  iterator = t.streaming.read_ahead(source, workers=1)
  t.streaming.next_batch(iterator)
  (reader,) = multiprocessing.active_children()
  print(reader.pid, flush=True)
  sys.stdin.read()
"""


@pytest.mark.thorough
def test_readers_outlive_signals_but_not_their_parent(tmp_path):
  script = tmp_path / 'parent.py'
  script.write_text(_PARENT.format(here=str(Path(__file__).parent)))
  parent = subprocess.Popen(
    [sys.executable, script],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
  )
  with parent:
    reader = int(parent.stdout.readline())
    os.kill(reader, signal.SIGTERM)
    os.kill(reader, signal.SIGINT)
    time.sleep(0.3)
    # Without it there would be a zombie now.
    status = Path(f'/proc/{reader}/status').read_text()
    assert 'State:\tZ' not in status
    parent.kill()
  for _ in range(100):
    if not Path(f'/proc/{reader}').exists():
      return
    time.sleep(0.1)
  os.kill(reader, signal.SIGKILL)
  pytest.fail('the reader still runs')


def test_what_readers_import_needs_no_jax():
  code = (
    'import sys, cbkd_jax.data.streaming as s, cbkd_jax.data.crops; '
    "found = {'jax', 'grain', 'tensorflow_datasets'} & set(sys.modules); "
    'sys.exit(str(found) if found else 0)'
  )
  subprocess.run([sys.executable, '-c', code], check=True)
