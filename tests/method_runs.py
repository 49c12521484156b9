"""Whole runs of methods: what must hold for any of them."""

import contextlib
import functools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run

from cbkd_jax import checkpoints, phases, step, student
from cbkd_jax.blocks import Variables
from cbkd_jax.errors import Preempted

STEPS = {'stage__steps': 3, 'thaw__steps': 3, 'checkpoint_every_steps': 2}


class Seen(NamedTuple):
  """A phase's step, and its state before and after, on the host."""

  spec: step.StepSpec
  before: step.TrainState
  after: step.TrainState


def write_teacher(directory: Path, model: Any = tiny_run.model) -> None:
  """A checkpoint of random weights: nothing is trained or compiled for it."""
  image_shape = (8, 8, 1)
  architecture = model(
    num_classes=10, image_shape=image_shape, dtype=np.float32, axis_name=None
  )
  network = architecture.network()
  checkpoints.write_variables(directory, tiny.draw(network, image_shape))


def draw_state(
  spec: step.StepSpec,
  student: Variables,
  teacher: Variables | None,
  rng: jax.Array,
  previous: Any,
) -> step.TrainState:
  """In the place of `step._create`, whose compiling takes long.

  The methods' parameters are drawn here; the rest is as it should be.
  """
  assert previous is None
  shapes = step.state_shapes(spec)
  return shapes._replace(
    step=jnp.int32(0),
    params=(*student.params, tiny.fill(shapes.params[-1])),
    batch_stats=student.batch_stats,
    objective_state=_objective_state(spec, student, teacher, rng),
    opt_state=jax.tree.map(
      lambda x: jnp.asarray(np.zeros(x.shape, x.dtype)), shapes.opt_state
    ),
    rng=jax.random.key_data(rng),
  )


@functools.partial(jax.jit, static_argnums=0)
def _objective_state(spec, student, teacher, rng):
  return step._new_state(spec, student, teacher, rng, None).objective_state


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, Seen]]:
  """What the phases that are trained meanwhile begin and end with."""
  seen, real = {}, phases.fit

  def fit(name, spec, state, *arguments, **keywords):
    before = jax.device_get(state)
    after, last = real(name, spec, state, *arguments, **keywords)
    seen[name] = Seen(spec, before, jax.device_get(after))
    return after, last

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(phases, 'fit', fit)
    yield seen


def check(
  directory: Path,
  changes: dict[str, Any],
  names: Sequence[str],
  interrupted_at: Sequence[int],
) -> dict[str, Seen]:
  """Runs in `directory/whole`, and once more in several parts.

  Args:
    directory: for both runs.
    changes: of tiny_run's config and of STEPS.
    names: the methods; each is in a phase's objective.
    interrupted_at: of each part, which time it asks whether it is
      interrupted it is.

  Returns:
    What was seen, by phase, in the order of the run.
  """
  changes = STEPS | changes
  whole, parts = directory / 'whole', directory / 'parts'
  with recorded() as seen:
    summary = tiny_run.run(whole, changes)
  assert [stage['name'] for stage in summary['stages']] == list(seen)
  compression = tiny_run.values(**changes)['compression']
  stages = len(compression['keep']) - 1
  total = stages * changes['stage__steps'] + changes['thaw__steps']
  assert sum(stage['steps'] for stage in summary['stages']) == total
  for phase, (spec, before, after) in seen.items():
    for i, trained in enumerate(spec.trained):
      one = before.params[i], before.batch_stats[i]
      two = after.params[i], after.batch_stats[i]
      assert tiny.same(one, two) != trained, f'{phase}, part {i}'
    for key, own in before.params[-1].items():
      if jax.tree.leaves(own):
        assert not tiny.same(own, after.params[-1][key]), f'{phase}: {key}'
    for leaf in jax.tree.leaves(after._replace(rng=())):
      assert np.isfinite(np.asarray(leaf, np.float64)).all(), phase
  rows = map(json.loads, (whole / 'metrics.jsonl').open())
  rows = [row for row in rows if 'loss' in row]
  assert len(rows) == total
  minimised = {
    phase: {term.key for term in found.spec.objective.terms}
    for phase, found in seen.items()
  }
  assert set().union(*minimised.values()) >= set(names)
  for row in rows:
    if not row['stage'].endswith('_pre'):
      terms = minimised[row['stage']]
      assert row.keys() >= terms
      assert all(np.isfinite(row[name]) for name in terms)

  # In the middle of a phase, at a step without a checkpoint.
  resumed = {}
  for at in interrupted_at:
    calls = iter(range(1000))
    with (
      recorded() as part,
      pytest.raises(Preempted, match='step 1 of'),
    ):
      tiny_run.run(parts, changes, lambda: next(calls) == at)  # noqa: B023
    resumed |= part
  with recorded() as part:
    tiny_run.run(parts, changes)
  assert 1 <= len(part) < len(seen)
  for phase, again in (resumed | part).items():
    assert tiny.same(again.after, seen[phase].after), phase
  one, two = ((d / 'metrics.jsonl').read_bytes() for d in (whole, parts))
  assert one == two
  assert tiny.same(*(student.read(d / 'student')[1] for d in (whole, parts)))
  return seen
