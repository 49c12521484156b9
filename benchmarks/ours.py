"""Our side of the comparison: the experiment, weights, and a step's calls."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from cbkd_jax import blocks, cache, config, experiment, step
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data import sampler
from cbkd_jax.experiment import Experiment
from configs import cifar10_resnet56

KEEP = (1.0, 0.5, 0.5)

# Models ask JAX's default backend what they run on.
jax.config.update('jax_platforms', 'cpu')


def build(batch_size: int) -> Experiment:
  """ResNet-56 on CIFAR-10 at `KEEP`, on one CPU device."""
  values = cifar10_resnet56.get_config()
  values.compression.keep = KEEP
  values.batch_size = batch_size
  values = config.plain(values)
  config.check(values)
  return experiment.build(values, tuple(jax.devices('cpu')[:1]))


def draw(exp: Experiment) -> tuple[Variables, Variables]:
  """Teacher's variables, and those of stage 1's hybrid, which shares them."""
  stage = exp.stages[0]
  teacher = _draw(exp.teacher_network, exp.image_shape, seed=0)
  own = _draw(exp.network(stage), exp.image_shape, seed=1)
  shared = stage.shared
  return teacher, Variables(
    *((*theirs[:shared], *ours[shared:]) for theirs, ours in zip(teacher, own))
  )


def _draw(network: Network, image_shape, seed: int) -> Variables:
  """No two entries alike, batch statistics included, logits of order 1."""
  random = np.random.default_rng(seed)

  def one(path, leaf):
    names = [key.key for key in path if hasattr(key, 'key')]
    u = random.uniform(-1, 1, leaf.shape)
    if names[-1] == 'kernel':
      u *= np.sqrt(6 / np.prod(leaf.shape[:-1]))
    elif names[-1] == 'scale' and names[-2] == 'norm2':
      # In eval mode nothing else stops 27 residual units from adding up.
      u = 0.3 + 0.1 * u
    elif names[-1] in ('scale', 'var'):
      u = 1 + 0.3 * u
    else:
      u *= 0.1
    return np.float32(u)

  return jax.tree.map_with_path(one, blocks.shapes(network, image_shape))


def flat(name: str, variables: Variables) -> dict[str, np.ndarray]:
  """The arrays by `name`, part, and names from there down, joined by dots."""
  found = {}
  for trees in variables:
    for path, leaf in jax.tree.leaves_with_path(trees):
      path = [str(getattr(key, 'key', getattr(key, 'idx', ''))) for key in path]
      found['.'.join((name, *path))] = np.asarray(leaf)
  return found


def initial_state(
  exp: Experiment,
  spec: step.StepSpec,
  student: Variables,
  teacher: Variables | None,
) -> step.TrainState:
  """The state before the first step, on the device."""
  state = step.create_train_state(spec, student, teacher, exp.rng('benchmark'))
  return exp.replicas.put(state)


def timed(
  exp: Experiment,
  spec: step.StepSpec,
  student: Variables,
  teacher: Variables | None,
  data: step.Resident,
  cached: bool = False,
) -> Callable[[int], float]:
  """`steps -> seconds`: takes further training steps, as `fit` does on a CPU.

  Args:
    exp: the experiment.
    spec: what is static in the step.
    student: the trained network's variables before the first step.
    teacher: the teacher's, None where the objective has no use for one.
    data: the train split, on the device.
    cached: whether the stage looks up what it can't change: one view of each
      image, its maps in bfloat16. Filling the cache is not timed.

  Returns:
    A function that blocks until the steps are done; the first call compiles.
  """
  state = initial_state(exp, spec, student, teacher)
  teacher = exp.replicas.put(teacher)
  examples = len(data.images)
  if cached:
    augmentation = spec.augmentation.of_fixed_views(1)
    spec = dataclasses.replace(spec, fixed_views=1, augmentation=augmentation)
    plan = cache.plan(spec, 'bfloat16', examples)
    kept = cache.fill(
      plan,
      'device',
      spec,
      state,
      teacher,
      data,
      replicas=exp.replicas,
      batch_size=256,
    )
    spec, data = cache.with_layout(spec, plan), data._replace(cache=kept.rows)
  run = step.compiled_train(spec, exp.replicas)
  done = 0

  def take(steps: int) -> float:
    nonlocal state, done
    began = time.perf_counter()
    for _ in range(steps):
      rows = sampler.rows(
        0, examples, exp.pace.batch_size, done, 1, spec.fixed_views
      )
      state, metrics = run(state, teacher, data, step.Drawn(rows[None]))
      loss = jax.device_get(metrics)['loss'][0]
      assert np.isfinite(loss), (done, loss)
      done += 1
    return time.perf_counter() - began

  return take


def random_split(exp: Experiment, examples: int) -> step.Resident:
  """uint8 images and int32 labels of noise: their content costs nothing."""
  random = np.random.default_rng(0)
  shape = (examples, *exp.image_shape)
  images = random.integers(0, 256, shape, np.uint8)
  classes = exp.config['data']['classes']
  labels = random.integers(0, classes, examples, np.int32)
  return exp.replicas.put(step.Resident(images, labels))
