"""The program that is compiled ahead is the one that the phase asks for."""

import types

import jax
import method_runs
import numpy as np
import pytest
import tiny
import tiny_run

from cbkd_jax import ahead, blocks, experiment, phases, step
from cbkd_jax.program import signature

pytestmark = pytest.mark.usefixtures('quick_compilation')


@pytest.mark.parametrize(
  ('place', 'objective'),
  # Parameters of its own; plain; a second view; images from disk.
  [
    ('nowhere', 'vid()'),
    pytest.param('device', 'kd', marks=pytest.mark.thorough),
    ('host', 'mlkd()'),
    pytest.param('disk', 'kd', marks=pytest.mark.thorough),
  ],
)
def test_a_phase_finds_its_program(tmp_path, monkeypatch, place, objective):
  """A run in which nothing is trained, but all is asked for."""
  prepared, asked, counts = {}, {}, []

  def program(spec, replicas):
    del replicas

    def compiled(*args):
      prepared[spec] = signature(args)

    return types.SimpleNamespace(compiled=compiled)

  def fit(name, spec, *args, feed, pace, meanwhile, **more):
    del name, more
    drawn = feed.draw(0, min(pace.per_call, spec.training.steps))
    asked[spec] = signature((*args, drawn))
    thread = meanwhile()
    if thread is not None:
      thread.join()
    counts.append(len(prepared))
    return args[0], {'loss': 0.0}

  def init(network, rng, image_shape, parts=None):
    del rng, parts
    return tiny.draw(network, image_shape)

  def predict(run, *_):
    logits, labels = np.zeros((2, 10)), np.zeros(2, np.int32)
    return {name: (logits, labels) for name in run.splits}

  monkeypatch.setattr(step, 'compiled_train', program)
  monkeypatch.setattr(phases, 'fit', fit)
  # What else would be compiled.
  monkeypatch.setattr(blocks, 'init', init)
  monkeypatch.setattr(step, '_create', method_runs.draw_state)
  monkeypatch.setattr(phases, '_predict', predict)
  changes = {'objective': objective, 'steps_per_call': 4}
  if place == 'disk':
    changes |= {'data__pipeline': 'stream'}
    changes |= {'data__mean': (0.5,), 'data__std': (0.5,)}
  elif place != 'nowhere':
    changes |= {'cache__prefix': True, 'cache__views': 2}
    changes |= {'cache__place': place}
  tiny_run.run(tmp_path / 'run', changes)
  teacher, *stages = asked
  assert len(stages) == 3
  assert teacher not in prepared
  assert prepared == {spec: asked[spec] for spec in stages}
  # All while the teacher trains; but of stages with a cache only the next one,
  # for what fits then is not known. The thaw has none.
  kept = place in ('device', 'host')
  assert counts == ([1, 3, 3, 3] if kept else [3, 3, 3, 3])


def test_after_the_last_phase_there_is_nothing():
  exp = experiment.build(tiny_run.values(), tuple(jax.devices()[:1]))
  assert ahead.begin(exp, 'thaw', tiny.PLAIN, 96) is None
