"""MGD against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax import errors
from cbkd_jax.blocks import View
from cbkd_jax.objectives import mgd
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(*features):
  return View(jnp.zeros(()), features, (), jnp.zeros(()))


def layer(get, name):
  return {
    'kernel': published.conv(get(f'{name}.weight')),
    'bias': get(f'{name}.bias'),
  }


@pytest.mark.parametrize(
  ('name', 'spatial_mask', 'has_align'),
  [
    ('mgd__cls_same_channels', False, False),
    ('mgd__det_spatial_mask', True, True),
  ],
)
def test_published(name, spatial_mask, has_align):
  def build(get):
    params = {
      'conv1': layer(get, 'generation.0'),
      'conv2': layer(get, 'generation.2'),
    }
    if has_align:
      params['align'] = layer(get, 'align')
    return published.feature(get('student_feat_0')), {'cut_0': params}

  def loss(tree, case):
    student, params = tree
    uniform = published.feature(case['rand_uniform'])
    # The detection code masks where the number exceeds 1 - lambda.
    uniform = 1 - uniform if spatial_mask else uniform
    teacher = published.feature(case['teacher_feat_0'])
    mask = float(case['hp_lambda_mgd'])
    expected = published.feature(case['aux_mask'])
    np.testing.assert_array_equal(mgd.kept(uniform, mask), expected)

    class Given(mgd.MaskedGenerativeDistillation):
      def draw(self, keys, cut, shape):
        del keys, cut
        own = super().draw(jax.random.split(jax.random.key(0), 2), 0, shape)
        assert own.shape == uniform.shape
        return uniform

    value, _, state = Given(mask=mask, spatial_mask=spatial_mask).loss(
      {'params': params, 'state': {}}, view(student), view(teacher), keys=None
    )
    assert state == {}
    return float(case['hp_alpha_mgd']) * value

  published.check(name, build, loss)


def test_by_hand():
  # The middle taps alone: 2 ReLU(3 x + 1) - 1 at every position.
  def tap(value, bias):
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = value
    return {'kernel': kernel, 'bias': np.full(1, bias, np.float32)}

  params = {'conv1': tap(3, 1), 'conv2': tap(2, -1)}
  x = jnp.asarray([[1.0, -2.0], [5.0, 5.0]]).reshape(2, 1, 2, 1)
  kept = jnp.asarray([1.0, 0.0]).reshape(2, 1, 1, 1)
  generated = mgd.Generator(1).apply({'params': params}, x, kept)
  np.testing.assert_allclose(generated[..., 0], [[[7, -1]], [[1, 1]]])
  teacher = jnp.asarray([[6.0, -1.0], [1.0, 4.0]]).reshape(2, 1, 2, 1)
  assert mgd.mgd_loss(generated, teacher) == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize('spatial_mask', [False, True])
def test_an_examples_mask_is_its_own(spatial_mask):
  """However the examples are spread over devices, and in every block anew."""
  method = mgd.MaskedGenerativeDistillation(spatial_mask=spatial_mask)
  keys = jax.random.split(jax.random.key(0), 4)
  whole = method.draw(keys, 1, (4, 5, 6, 40))
  halves = [method.draw(keys[i : i + 2], 1, (2, 5, 6, 40)) for i in (0, 2)]
  np.testing.assert_array_equal(whole, np.concatenate(halves))
  assert whole.shape == ((4, 5, 6, 1) if spatial_mask else (4, 1, 1, 40))
  assert len(np.unique(whole)) > 0.9 * whole.size
  assert (whole != method.draw(keys, 2, (4, 5, 6, 40))).all()


def test_the_share_that_is_masked():
  keys = jax.random.split(jax.random.key(0), 8)
  uniform = mgd.MaskedGenerativeDistillation().draw(keys, 0, (8, 1, 1, 500))
  assert np.mean(mgd.kept(uniform, 0.15)) == pytest.approx(0.85, abs=0.02)
  assert mgd.kept(uniform, 0.0).all()


def test_variables_and_a_step_of_two_blocks():
  setting = Setting(blocks=3, trained=(1,), batch_size=2)
  method = mgd.MaskedGenerativeDistillation(at='cuts', setting=setting)
  student, teacher = (
    view(*(jnp.ones((2, 3, 3, c)) for c in widths))
    for widths in ((4, 4, 5), (4, 5, 5))
  )

  @jax.jit
  def run():
    variables = method.init(jax.random.key(0), student, teacher)
    keys = jax.random.split(jax.random.key(1), 2)
    value, extra, state = method.loss(variables, student, teacher, keys=keys)
    return variables, value, extra, state

  variables, value, extra, state = run()
  params = variables['params']
  assert list(params) == ['cut_1', 'cut_2']
  assert set(params['cut_1']) == {'align', 'conv1', 'conv2'}
  assert params['cut_1']['align']['kernel'].shape == (1, 1, 4, 5)
  assert set(params['cut_2']) == {'conv1', 'conv2'}
  assert params['cut_2']['conv2']['kernel'].shape == (3, 3, 5, 5)
  assert extra == state == {}
  assert np.isfinite(value)
  assert value > 0


def test_misuse():
  with pytest.raises(
    errors.UserError, match=r'mgd.mask = 1.0: must be from 0 to below 1'
  ):
    mgd.MaskedGenerativeDistillation(mask=1.0)
  with pytest.raises(
    errors.UserError, match="after block 0 the student's map is 4x4"
  ):
    mgd.MaskedGenerativeDistillation().init(
      jax.random.key(0),
      view(jnp.ones((1, 4, 4, 2))),
      view(jnp.ones((1, 2, 2, 2))),
    )
