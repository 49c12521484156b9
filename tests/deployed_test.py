"""A network as it is shipped computes what the saved one computes."""

import jax
import numpy as np
import pytest
import shipped
import tiny

from cbkd_jax import blocks, deployed, trees
from cbkd_jax.errors import UserError

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGES = tiny.images(5)[0]
PIXELS = ((IMAGES / 255 - 0.3) / 0.2).astype(np.float32)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  directory = tmp_path_factory.mktemp('deployed') / 'run'
  return directory, *shipped.write(directory)


def logits(found, images=IMAGES):
  run = jax.jit(found.function)
  return np.asarray(run(found.arrays, found.prepare(images)))


def expected(network, variables):
  return jax.jit(lambda x: blocks.logits(network, variables, x))(PIXELS)


def close(one, two):
  np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_student_in_both_forms(run):
  directory, network, variables = run
  wanted = expected(network, variables)
  plain = deployed.student_of(directory, normalise=False, fold=False)
  close(logits(plain), wanted)
  assert plain.prepare(IMAGES).dtype == plain.input_dtype == 'float32'
  close(plain.prepare(IMAGES), PIXELS)
  assert set(plain.arrays) == {'params', 'batch_stats'}
  assert plain.norms is None

  whole = deployed.student_of(directory, normalise=True)
  close(logits(whole), wanted)
  assert whole.prepare(IMAGES) is IMAGES
  assert whole.input_dtype == 'uint8'
  assert set(whole.arrays) == {'params'}
  assert len(whole.norms) == 3
  assert whole.image_shape == (8, 8, 1)
  assert whole.class_names == shipped.NAMES
  assert (whole.mean, whole.std) == ((0.3,), (0.2,))


def test_the_teacher(run):
  directory, *_ = run
  found = deployed.teacher_of(directory, normalise=True)
  close(logits(found), expected(*shipped.teacher(directory)))
  assert found.class_names == shipped.NAMES


def test_a_head_that_a_method_gave(tmp_path):
  objective = 'ce + simkd(factor=2)'
  directory = tmp_path / 'run'
  network, variables = shipped.write(directory, objective=objective)
  found = deployed.student_of(directory, normalise=True)
  assert 'head' in found.model
  assert 'projector' in found.arrays['params']['head']
  close(logits(found), expected(network, variables))


def test_float32_whatever_the_run_computed_in(tmp_path):
  shipped.write(tmp_path / 'run', compute_dtype='bfloat16')
  found = deployed.student_of(tmp_path / 'run', normalise=True)
  assert {a.dtype for a in jax.tree.leaves(found.arrays)} == {np.dtype('f4')}
  program = str(jax.make_jaxpr(found.function)(found.arrays, IMAGES))
  assert 'conv_general' in program
  assert 'bf16' not in program


def test_one_program_wherever_it_is_traced(monkeypatch):
  """ResNets have barriers on CPU; products are in full everywhere."""
  model = {
    'family': 'resnet8',
    'classes': 10,
    'input_shape': (8, 8, 1),
    'class_names': shipped.NAMES,
    'mean': (0.3,),
    'std': (0.2,),
  }
  variables = blocks.shapes(deployed.network_of(model), (8, 8, 1))
  arrays = trees.from_variables(variables)

  def program():
    found = deployed.of_arrays(model, arrays, normalise=True, norms=None)
    return str(jax.make_jaxpr(found.function)(arrays, IMAGES))

  here = program()
  assert 'optimization_barrier' not in here
  assert here.count('precision=(Precision.HIGHEST') == 10  # and the classifier
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  with jax.default_matmul_precision('bfloat16'):
    assert program() == here


def test_an_unfinished_run(tmp_path):
  for function in deployed.student_of, deployed.teacher_of:
    with pytest.raises(UserError, match='holds no finished student'):
      function(tmp_path, normalise=True)
