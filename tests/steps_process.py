"""One process of several that take the same steps, on all their devices.

`python steps_process.py COUNT RANK PORT DIRECTORY`.
"""

import contextlib
import sys
from pathlib import Path

import jax
import numpy as np
import step_test
import tiny

from cbkd_jax import (
  blocks,
  cache,
  data,
  errors,
  evaluation,
  feed,
  processes,
  replicas,
)
from cbkd_jax.data import Split
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.stages import Training

STEPS = 20
# So slow that rounding is not blown up.
TRAINING = Training(steps=STEPS, learning_rate=0.02, schedule='constant')
FLIPS = Augmentation(0, True, (0.5,), (0.25,))
EXAMPLES = 13


def run(devices: int, spmd: str, model: int = 1) -> list[np.ndarray]:
  """Losses and the last state of `STEPS` steps of a thaw, with flips."""
  axis = None if spmd == 'jit' else replicas.AXIS
  made = step_test.make(
    'thaw', axis=axis, training=TRAINING, augmentation=FLIPS
  )
  found = step_test.Run.of(made, devices, spmd, model).take(STEPS)
  variables = found.replicas.fetch(found.state.variables)
  return [np.array(found.metrics['loss']), *jax.tree.leaves(variables)]


def logits(devices: int) -> list[np.ndarray]:
  """Logits and labels of a split that devices don't divide."""
  network = tiny.architecture().network()
  found = replicas.Replicas('pmap', tuple(jax.devices()[:devices]))
  split = Split(*tiny.images(EXAMPLES))
  variables = found.put(tiny.draw(network))
  return list(
    evaluation.predict(network, variables, split, tiny.PLAIN, found, 8)
  )


def rows(devices: int) -> list[np.ndarray]:
  """A stage's cache, as every process has it."""
  made = step_test.make('stage_1', fixed_views=2)
  one = step_test.Run.of(made, devices)
  resident = one.replicas.put(tiny_data())
  plan = cache.plan(one.spec, 'exact', step_test.EXAMPLES)
  kept = cache.fill(
    plan,
    'device',
    one.spec,
    one.state,
    one.teacher,
    resident,
    replicas=one.replicas,
    batch_size=24,
  )
  return jax.tree.leaves(one.replicas.fetch(kept.rows))


def tiny_data():
  """The train split of `step_test`."""
  return step_test.step.Resident(*tiny.images(step_test.EXAMPLES))


def fed(devices: int) -> list[np.ndarray]:
  """The images and labels of a streamed phase's calls, as every process has."""
  wanted = data.Wanted(
    'digits',
    train_split='train[:50]',
    crop='random_resized',
    crop_area=0.3,
    image_shape=(6, 6, 1),
  )
  split = data.stream(wanted).train
  found = replicas.Replicas('pmap', tuple(jax.devices()[:devices]))
  spec = step_test.make('thaw', training=Training(steps=8))[0]
  given = feed.begin(
    split,
    spec,
    seed=3,
    first_step=2,
    kept=None,
    batch_size=16,
    per_call=4,
    replicas=found,
  )
  with contextlib.closing(given):
    drawn = [given.draw(2, 2), given.draw(4, 4)]
  return jax.tree.leaves(found.fetch(drawn))


def everything() -> dict[str, list[np.ndarray]]:
  """What must not depend on the number of processes, of all devices."""
  devices = jax.device_count()
  return {
    'pmap': run(devices, 'pmap'),
    'jit': run(devices, 'jit', 2),
    'logits': logits(devices),
    'rows': rows(devices),
    'fed': fed(devices),
  }


def failure(rank: int) -> str:
  """What a process says when the last one alone has made a mistake."""

  def fail():
    if rank == jax.process_count() - 1:
      raise errors.UserError('no such file')

  try:
    processes.together(fail)
  except errors.UserError as error:
    return f'{error} {error.alone}'
  return 'nothing'


def compared(seed: int) -> str:
  """What a process says where some may have another config."""
  try:
    processes.check_same({'config': {'seed': seed}, 'workdir': 'run'})
  except errors.UserError as error:
    return f'{error} {error.alone}'
  return 'nothing'


if __name__ == '__main__':
  count, rank, port = map(int, sys.argv[1:4])
  jax.config.update('jax_default_matmul_precision', 'highest')
  jax.config.update('jax_disable_most_optimizations', True)
  replicas._LEAST_SHARDED = 1
  processes.join(f'localhost:{port}', count, rank, 60)
  found = everything()
  assert blocks.count_params(found['pmap']) > 100
  said = [failure(rank), compared(rank), compared(7)]
  most = processes.most(rank)
  if processes.is_first():
    flat = {f'{k}/{i:03}': a for k, v in found.items() for i, a in enumerate(v)}
    np.savez(Path(sys.argv[4]) / 'found.npz', **flat)
  print('\n'.join([*said, f'{most}']), flush=True)
  processes.leave()
