"""Runs of vision transformers and ConvNeXts: methods, cache, resuming."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_layers
import tiny_run

from cbkd_jax import (
  checkpoints,
  experiment,
  objectives,
  step,
  storage,
  student,
)
from cbkd_jax.errors import Preempted, UserError
from cbkd_jax.replicas import spmd

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Options where the defaults are too much for a tiny network.
OPTIONS = {
  'crd': 'dimension=4, negatives=6',
  'cc': 'dimension=4',
  'semckd': 'factor=2, at="last"',
}
REFUSED = {
  'vit': {
    'ofd': "ofd needs the teacher's normalisations, and this teacher.model",
    'simkd': 'simkd: the head of this teacher.model must read the features',
  },
  'convnext': {
    'ofd': "ofd needs the teacher's normalisations, and this teacher.model",
  },
}
STEPS = {'teacher__steps': 2, 'stage__steps': 3, 'thaw__steps': 3}


def values(family, **changes):
  changes = {'teacher__model': f'tiny_layers:{family}'} | STEPS | changes
  return tiny_run.values(**changes)


@pytest.mark.thorough
def test_every_method_that_looks_at_features_sees_a_transformer():
  """In every stage; traced in the first, not run."""
  names = sorted(
    name
    for name, method in objectives.METHODS.items()
    if method.knowledge != 'response' and name not in REFUSED['vit']
  )
  terms = (f'{name}({OPTIONS.get(name, "")})' for name in names)
  exp = experiment.build(
    values(
      'shallow_vit',
      objective=' + '.join(terms),
      compression__keep=(1.0, 0.5),
    )
  )
  stage = next(stage for stage in exp.stages if stage.name == 'stage_1')
  spec = exp.spec(stage, tiny.PLAIN)
  state = step.state_shapes(spec)
  found, metrics = jax.eval_shape(
    spmd(
      functools.partial(step.train_steps, spec, False),
      exp.replicas,
      replicated=3,
      batch_axis=1,
      keeps_state=True,
    ).fn,
    state,
    spec.shapes()[1],
    step.Resident(
      jax.ShapeDtypeStruct((96, 8, 8, 1), jnp.uint8),
      jax.ShapeDtypeStruct((96,), jnp.int32),
    ),
    step.Drawn(jax.ShapeDtypeStruct((4, 1, 4), jnp.int32)),
  )
  assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
    lambda x: (x.shape, x.dtype), state
  )
  assert metrics.keys() >= set(names) - {'ab'}


@pytest.mark.parametrize(
  ('family', 'method'),
  [(family, name) for family, names in REFUSED.items() for name in names],
)
def test_methods_that_cannot_say_so(family, method):
  with pytest.raises(UserError) as caught:
    experiment.build(values(family, objective=f'ce + {method}()'))
  assert f'stage_1: {REFUSED[family][method]}' in str(caught.value)
  assert '\n' not in str(caught.value)


def test_pca_has_nothing_to_fit():
  with pytest.raises(UserError) as caught:
    experiment.build(values('vit', compression__init='pca'))
  assert str(caught.value) == (
    "compression.init = 'pca': fits 1x1 adapters, which the blocks of this "
    'teacher.model do without; allowed: random, slice'
  )


def test_tokens_are_rounded_as_maps_are():
  random = np.random.default_rng(0)
  tokens = np.float32(random.normal(size=(3, 5, 4)))
  logits = np.float32(random.normal(size=(3, 4)))
  layout = storage.Layout('uint8', ((0, 0), (1, 1)))
  kept = storage.encode(layout, [tokens, logits])
  as_map = storage.encode(layout, [tokens[:, :, None], logits])
  np.testing.assert_array_equal(
    kept['0']['codes'], as_map['0']['codes'][:, :, 0]
  )
  back = storage.decode(layout, kept, [tokens, logits])
  steps = (tokens.max(1) - tokens.min(1))[:, None] / 255
  assert (np.abs(back[0] - tokens) <= 0.5001 * steps + 1e-6).all()
  assert np.abs(back[0] - tokens).max() > 1e-4
  np.testing.assert_array_equal(back[1], logits)


@pytest.mark.thorough
def test_a_transformer_goes_through_all_stages_and_resumes(tmp_path):
  """By a method on its maps, with AdamW, and with a cache of tokens."""
  teacher = tmp_path / 'teacher'
  network = tiny_layers.shallow_vit(
    num_classes=10, image_shape=(8, 8, 1), dtype=jnp.float32, axis_name=None
  ).network()
  given = tiny.draw(network, (8, 8, 1))
  checkpoints.write_variables(teacher, given)
  changes = {
    'teacher__model': 'tiny_layers:shallow_vit',
    'compression__keep': (1.0, 0.5),
    'teacher__checkpoint': str(teacher),
    'objective': 'ce + 100*at',
    'cache__prefix': True,
    'cache__dtype': 'uint8',
    'stage__optimizer': 'adamw',
    'thaw__optimizer': 'adamw',
    'checkpoint_every_steps': 2,
    **STEPS,
  }
  whole = tmp_path / 'whole'
  with pytest.raises(Preempted, match='thaw'):
    tiny_run.run(whole, changes, lambda: (whole / 'thaw').exists())
  summary = tiny_run.run(whole, changes)
  assert [s['name'] for s in summary['stages']] == ['stage_1', 'thaw']
  for stage in summary['stages']:
    assert np.isfinite(stage['loss'])

  # The deepest block and the head, by hand: 2 of 4 heads, half of 48 features.
  def block(heads, hidden):
    attention = 12 * 9 * heads + 9 * heads + 3 * heads * 12 + 12
    mlp = 12 * hidden + hidden + hidden * 12 + 12
    return attention + mlp + 3 * 2 * 12 + 12 * 10 + 10

  costs = summary['compression']['per_block'][1]
  assert costs['teacher']['params'] == block(4, 48)
  assert costs['student']['params'] == block(2, 24)

  model = json.loads((whole / 'student' / 'model.json').read_text())
  assert model['widths'] == [12, 6]
  assert model['reduce'] == [0, 0]
  trained = student.read(whole / 'student')[1]
  assert trained.params[1].keys() == {'unit_0'}
