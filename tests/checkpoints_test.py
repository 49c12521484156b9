"""Checkpoints of one phase, and of a whole network."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cbkd_jax import checkpoints
from cbkd_jax.checkpoints import PhaseCheckpoints
from cbkd_jax.errors import UserError
from cbkd_jax.step import TrainState

TRAINED = (False, True, False, True)  # block 1 and the head


@pytest.fixture(scope='module')
def variables():
  return tiny.draw(tiny.architecture().network())


def _state(variables, step=3):
  """A state of a stage: momentum and objective's variables are made up."""
  objective = {'kd': {'w': jnp.arange(3.0)}, 'ce': {}}
  momentum = [variables.params[1], variables.params[3]]
  return TrainState(
    step=jnp.int32(step),
    params=(*variables.params, objective),
    batch_stats=variables.batch_stats,
    objective_state={'kd': {'bank': jnp.ones((2, 2))}, 'ce': {}},
    opt_state=(optax.EmptyState(), optax.TraceState(momentum)),
    rng=jnp.array([1, 2], jnp.uint32),
  )


def _zeros(tree):

  return jax.tree.map(jnp.zeros_like, tree)


@pytest.fixture
def phase(tmp_path):
  with_phase = PhaseCheckpoints(tmp_path / 'stage_1')
  yield with_phase
  with_phase.close()


def _save(phase, state, **progress):
  tree = checkpoints.snapshot(state, TRAINED)
  phase.save(int(state.step), tree, progress)


def test_a_state_comes_back_bit_for_bit(phase, variables, tmp_path):
  state = _state(variables)
  _save(phase, state, results={'accuracy': 0.1}, metrics_position=7)
  phase.close()
  again = PhaseCheckpoints(tmp_path / 'stage_1', read_only=True)
  assert again.latest() == 3
  assert again.progress() == {
    'results': {'accuracy': 0.1},
    'metrics_position': 7,
  }
  found = checkpoints.tree_to_state(again, _zeros(state), TRAINED)
  # What isn't trained is not in the checkpoint: it stays as it was given.
  for i, trained in enumerate(TRAINED):
    expected = variables.params[i]
    expected = expected if trained else _zeros(expected)
    assert tiny.same(found.params[i], expected)
  assert tiny.same(found.batch_stats[1], variables.batch_stats[1])
  assert tiny.same(found.batch_stats[0], _zeros(variables.batch_stats[0]))
  for name in 'step', 'objective_state', 'opt_state', 'rng':
    assert tiny.same(getattr(found, name), getattr(state, name))
  assert tiny.same(found.params[-1], state.params[-1])
  again.close()


def test_a_snapshot_outlives_its_state(phase, variables):
  state = jax.tree.map(jnp.copy, _state(variables))
  tree = checkpoints.snapshot(state, TRAINED)
  expected = np.array(state.params[3]['classifier']['bias'])

  for leaf in jax.tree.leaves(state):
    leaf.delete()  # as a step does that takes the state over
  phase.save(3, tree, {})
  phase.close()
  bias = tree['params']['head']['classifier']['bias']
  assert np.array_equal(bias, expected)


def test_only_the_last_is_kept(phase, variables, tmp_path):
  for step in 2, 4, 6:
    _save(phase, _state(variables, step))
  phase.close()
  assert os.listdir(tmp_path / 'stage_1') == ['6']


def test_half_a_checkpoint_is_none(phase, variables, tmp_path):
  _save(phase, _state(variables))
  phase.close()
  root = tmp_path / 'stage_1'
  half = root / '9.orbax-checkpoint-tmp'
  shutil.copytree(root / '3' / 'state', half / 'state')
  reader = PhaseCheckpoints(root, read_only=True)
  assert reader.latest() == 3
  assert reader.half_written == ((9, half),)
  reader.close()
  # A reader has no business with it: another process may be writing it.
  assert half.exists()
  again = PhaseCheckpoints(root)
  assert again.latest() == 3
  assert again.half_written == ((9, half),)
  _save(again, _state(variables, 9))
  again.close()
  assert again.latest() == 9
  assert os.listdir(root) == ['9']


def test_a_reader_makes_nothing(tmp_path):
  phase = PhaseCheckpoints(tmp_path / 'none', read_only=True)
  assert phase.latest() is None
  phase.close()
  assert not (tmp_path / 'none').exists()


def test_no_checkpoint_yet(phase):
  assert phase.latest() is None


def test_a_network_and_some_of_its_parts(tmp_path, variables):
  path = tmp_path / 'weights'
  checkpoints.write_variables(path, variables)
  empty = _zeros(variables)
  assert tiny.same(checkpoints.read_variables(path, empty), variables)
  found = checkpoints.read_variables(path, empty, [1, 3])
  for i in range(4):
    expected = variables if i in (1, 3) else empty
    assert tiny.same(found.params[i], expected.params[i])
    assert tiny.same(found.batch_stats[i], expected.batch_stats[i])


def test_another_shape_is_named_with_both(tmp_path, variables):
  checkpoints.write_variables(tmp_path / 'weights', variables)
  params = list(variables.params)
  bias = params[3]['classifier']['bias']
  classifier = {**params[3]['classifier'], 'bias': jnp.zeros(bias.size + 2)}
  params[3] = {**params[3], 'classifier': classifier}
  with pytest.raises(UserError) as caught:
    checkpoints.read_variables(
      tmp_path / 'weights', variables._replace(params=tuple(params))
    )
  assert str(caught.value) == (
    f'checkpoint {tmp_path}/weights does not fit: params/head/classifier/bias '
    'has shape (3,) there, but (5,) here'
  )


def test_an_entry_that_is_not_there_is_named(tmp_path, variables):
  checkpoints.write_variables(
    tmp_path / 'weights', variables._replace(batch_stats=({},) * 4)
  )
  with pytest.raises(UserError, match='it has no batch_stats/block_0/'):
    checkpoints.read_variables(tmp_path / 'weights', variables)


@pytest.mark.parametrize('what', ['nothing', 'file', 'text', 'cut'])
def test_what_is_no_checkpoint_is_said_in_one_line(tmp_path, variables, what):
  path = tmp_path / 'weights'
  if what == 'file':
    path.write_text('x')
  elif what == 'text':
    path.mkdir()
    (path / '_METADATA').write_text('x')
  elif what == 'cut':
    checkpoints.write_variables(path, variables)
    for file in (path / 'd').iterdir():
      file.unlink()
    shutil.rmtree(path / 'ocdbt.process_0')
  with pytest.raises(UserError) as caught:
    checkpoints.read_variables(path, variables)
  assert str(caught.value).startswith(f'checkpoint {path}: cannot be read')
  assert '\n' not in str(caught.value)


def test_where_a_teacher_may_lie(phase, variables, tmp_path):
  _save(phase, _state(variables, 10), results={'accuracy': 0.5})
  phase.close()
  state = tmp_path / 'stage_1' / '10' / 'state'
  (tmp_path / 'run').mkdir()
  (tmp_path / 'stage_1').rename(tmp_path / 'run' / 'teacher')
  state = tmp_path / 'run' / 'teacher' / '10' / 'state'
  for path in (
    tmp_path / 'run',
    tmp_path / 'run' / 'teacher',
    tmp_path / 'run' / 'teacher' / '10',
    state,
  ):
    assert checkpoints.teacher_checkpoint(str(path)) == state
  for path in tmp_path, tmp_path / 'nowhere':
    with pytest.raises(UserError, match='neither a workdir with a teacher nor'):
      checkpoints.teacher_checkpoint(str(path))
