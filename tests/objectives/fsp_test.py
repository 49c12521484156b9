"""FSP against published and hand-made numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import published
import pytest

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives import fsp
from cbkd_jax.objectives.method import Setting

pytestmark = pytest.mark.usefixtures('quick_compilation')


def view(maps):
  return View(None, tuple(maps), (), None)


def method(blocks, trained=(0,), **options):
  setting = Setting(blocks=blocks, trained=trained)
  return fsp.FlowOfSolutionProcedure(setting=setting, **options)


def shapes(*widths):
  return view(jax.ShapeDtypeStruct((2, 4, 4, w), jnp.float32) for w in widths)


@pytest.mark.parametrize(
  ('name', 'layers'), [('four_stages', 4), ('sizes_differ', 3)]
)
def test_published(name, layers):
  def build(get):
    return [published.feature(get(f'student_feat_{i}')) for i in range(layers)]

  def loss(student, case):
    teacher = (
      published.feature(case[f'teacher_feat_{i}']) for i in range(layers)
    )
    return method(layers).loss({'params': {}}, view(student), view(teacher))

  published.check(f'fsp__rep_{name}', build, loss)


def test_by_hand():
  # One channel each, two positions: (1*3 + 2*4)/2 against (1*0 + 1*1)/2.
  student, teacher = (
    [jnp.asarray(x).reshape(1, 1, 2, 1) for x in pair]
    for pair in (([1.0, 2.0], [3.0, 4.0]), ([1.0, 1.0], [0.0, 1.0]))
  )
  assert fsp.fsp_loss(student, teacher) == pytest.approx((5.5 - 0.5) ** 2)
  value, grads = jax.value_and_grad(fsp.fsp_loss)(student, student)
  assert value == 0
  assert not np.any(grads)


def test_a_single_place_is_refused():
  alone = method(3, (1,), at='trained')
  with pytest.raises(UserError, match=r"^fsp\.at = 'trained': .* block 1 alon"):
    alone.init(jax.random.key(0), shapes(4, 4, 4), shapes(4, 4, 4))


def test_a_connector_where_widths_differ():
  term, student, teacher = method(3), shapes(4, 3, 8), shapes(4, 6, 8)
  variables = term.init(jax.random.key(0), student, teacher)
  assert list(variables['params']) == ['cut_1']
  assert variables['params']['cut_1']['kernel'].shape == (1, 1, 3, 6)
  maps = (
    view(jnp.ones(x.shape) for x in v.features) for v in (student, teacher)
  )
  value, extra, state = term.loss(variables, *maps)
  assert (value.shape, extra, state) == ((), {}, {})
  with pytest.raises(UserError, match=r"^fsp\.regressor = 'none': after block"):
    method(3, regressor='none').init(jax.random.key(0), student, teacher)
