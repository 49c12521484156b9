"""Every method in a whole CBKD run, and what it can and can't do there."""

import functools

import cli
import jax
import jax.numpy as jnp
import method_runs
import numpy as np
import pytest
import tiny
import tiny_run

from cbkd_jax import experiment, objectives, step
from cbkd_jax.blocks import HeadOutput, View
from cbkd_jax.objectives.method import AVAILABLE, Method
from cbkd_jax.replicas import spmd

pytestmark = pytest.mark.usefixtures('quick_compilation')

# Options where the defaults are too much for a tiny network.
OPTIONS = {
  'crd': 'dimension=4, negatives=6',
  'cc': 'dimension=4',
  'semckd': 'factor=2, at="last"',
}

# Together, since most of a run is compiling. Those with a pre-stage or a
# prediction of their own are apart; pre_stages_test runs the latter.
GROUPS = {
  'plain': (
    *('dkd', 'nkd', 'dist', 'mlkd', 'rld', 'wsld', 'ctkd', 'kd'),
    *('sp', 'cc', 'rkd', 'pkt', 'irg', 'hkd', 'fsp', 'crd', 'kdsvd'),
    *('fitnet', 'at', 'vid', 'nst', 'mgd', 'srrl'),
    *('ofd', 'reviewkd', 'semckd'),
  ),
  'ab': ('ab',),
  'prepared': ('ft', 'simkd'),
}
# Of every kind one: they see outputs, second views, a bank of examples, maps
# through regressors, the teacher's head and its normalisations. The others do
# so in a thorough session.
SOME = ('mlkd', 'crd', 'fitnet', 'ctkd', 'srrl', 'ofd')
THOROUGH = pytest.param('plain', marks=pytest.mark.thorough)
# Those with variables of their own, which go on from step to step.
LEARNED = [
  name
  for name in GROUPS['plain']
  if objectives.METHODS[name].init is not Method.init
]


def call(name):
  return f'{name}({OPTIONS.get(name, "")})'


def summed(names):
  return ' + '.join(f'0.1*{call(name)}' for name in names)


def test_no_method_is_left_out():
  assert sorted(sum(GROUPS.values(), ())) == sorted(
    set(objectives.METHODS) - {'ce'}
  )


@pytest.fixture(scope='module')
def teacher(tmp_path_factory, quick_compilation):
  """A checkpoint."""
  directory = tmp_path_factory.mktemp('teacher') / 'checkpoint'
  method_runs.write_teacher(directory, tiny_run.shallow)
  return directory


@pytest.mark.parametrize(
  'group', ['some', THOROUGH, pytest.param('ab', marks=pytest.mark.thorough)]
)
def test_in_a_stage_and_a_thaw(group, teacher, tmp_path, monkeypatch):
  # Without labels: it is the methods alone that move the blocks.
  names = SOME if group == 'some' else GROUPS[group]
  changes = {'objective': summed(names)}
  phases = ['stage_1', 'thaw']
  # In the stage, in the thaw; with a pre-stage of one step, in the stage.
  interrupted_at = [3, 6]
  if group == 'ab':  # which has no loss after its pre-stage
    changes = {'objective': 'ce + ab()'}
    phases = ['stage_1_pre', *phases]
    interrupted_at = [5]
  else:
    # As much as a third of the run was compiling the methods' initialisers;
    # test_it_reaches_what_the_stage_changes calls each.
    monkeypatch.setattr(step, '_create', method_runs.draw_state)
    # All of them once, and then what has something to go on with: each more
    # costs a second to compile and finds nothing new.
    changes |= {
      'thaw__objective': summed(name for name in names if name in LEARNED)
    }
  changes |= {
    'teacher__model': 'tiny_run:shallow',
    'teacher__checkpoint': str(teacher),
    'compression__keep': (1.0, 0.5),
  }
  seen = method_runs.check(tmp_path, changes, names, interrupted_at)
  assert list(seen) == phases


@pytest.mark.parametrize('group', [THOROUGH, 'ab', 'prepared'])
def test_several_steps_in_a_call(group):
  """A loop's carry must keep its shapes and types; traced, not run."""
  expression = 'ce + ' + ' + '.join(call(name) for name in GROUPS[group])
  exp = experiment.build(
    tiny_run.values(**method_runs.STEPS, objective=expression, spmd='shard_map')
  )
  for stage in exp.stages:
    # The first stage of a shallower network is run, above.
    if (stage.prepares or stage).name == 'stage_1':
      continue
    spec = exp.spec(stage, tiny.PLAIN)
    _, teacher_shapes = spec.shapes()
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
      teacher_shapes,
      step.Resident(
        jax.ShapeDtypeStruct((96, 8, 8, 1), jnp.uint8),
        jax.ShapeDtypeStruct((96,), jnp.int32),
      ),
      step.Drawn(jax.ShapeDtypeStruct((4, 3, 4), jnp.int32)),
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state
    )
    assert metrics['loss'].shape == (3,)


def random_view(random, widths, classes=5, batch=6):
  sides = (8, 4, 2)
  maps = [
    random.normal(size=(batch, side, side, width)).astype(np.float32)
    for side, width in zip(sides, widths)
  ]
  return View(
    logits=jnp.asarray(random.normal(size=(batch, classes)), jnp.float32),
    features=tuple(jax.nn.relu(x) for x in maps),
    pre_activations=tuple(map(jnp.asarray, maps)),
    pooled=jnp.asarray(maps[-1].mean((1, 2))),
  )


def supplied(random, teacher, batch=6):
  """Something of everything that a method may need."""
  width, classes = teacher.pooled.shape[-1], teacher.logits.shape[-1]
  kernel = jnp.asarray(random.normal(size=(width, classes)), jnp.float32)
  labels = jnp.asarray(random.integers(0, classes, batch))
  found = {
    'labels': labels,
    'mixed': None,
    'indices': jnp.arange(batch),
    'keys': jax.random.split(jax.random.key(0), batch),
    'step': jnp.int32(3),
    'epoch': jnp.float32(5),
    'train_labels': jnp.concatenate([labels, labels]),
    'teacher_head': lambda x: HeadOutput(x.mean((1, 2)) @ kernel, None),
    'teacher_classifier': lambda pooled: pooled @ kernel,
    'teacher_norms': tuple(
      (jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])) for x in teacher.features
    ),
    'second_view': None,
  }
  assert found.keys() == AVAILABLE.keys()
  return found


@pytest.mark.parametrize(
  'name', [name for name in objectives.METHODS if name != 'ce']
)
def test_it_reaches_what_the_stage_changes(name):
  """And is float32 of bfloat16 views, and finite."""
  random = np.random.default_rng(0)
  ours, theirs = random_view(random, (4, 6, 5)), random_view(random, (4, 6, 8))
  first = 2
  ours = ours._replace(
    features=(*theirs.features[:first], *ours.features[first:]),
    pre_activations=(
      *theirs.pre_activations[:first],
      *ours.pre_activations[first:],
    ),
  )
  available = supplied(random, theirs) | {'second_view': (ours, theirs)}
  half = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)  # noqa: E731
  setting = objectives.Setting(
    blocks=3,
    trained=(first,),
    steps=10,
    batch_size=6,
    train_size=12,
    preparing=name == 'ab',
  )
  objective = objectives.parse(f'1*{call(name)}').bind(setting)
  params, state = jax.jit(objective.init)(
    jax.random.key(1), half(ours), half(theirs)
  )

  @jax.jit
  def run(view):
    def loss(view):
      total, (metrics, new) = objective.loss(
        params, state, view, half(theirs), available
      )
      return total, (metrics[name], new)

    return jax.value_and_grad(loss, has_aux=True)(view)

  (_, (value, new)), grads = run(half(ours))
  assert value.dtype == jnp.float32
  assert np.isfinite(value)
  assert jax.tree.structure(new) == jax.tree.structure(state)
  changed = View(
    grads.logits,
    grads.features[first:],
    grads.pre_activations[first:],
    grads.pooled,
  )
  sizes = [float(jnp.abs(g.astype(jnp.float32)).max()) for g in changed[:1]]
  sizes += [
    float(jnp.abs(g.astype(jnp.float32)).max())
    for g in jax.tree.leaves(changed[1:])
  ]
  assert np.isfinite(sizes).all()
  assert max(sizes) > 0


MISUSES = {
  'ab(pre_fraction=1)': 'ab.pre_fraction = 1.0: must be from 0 to below 1',
  'at(power=0)': 'at.power = 0: must be above 0',
  'cc(dimension=0)': 'cc.dimension = 0: must be above 0',
  'crd(negatives=0)': 'crd.negatives = 0: must be above 0',
  'ctkd(t_start=0)': 'ctkd.t_start = 0.0: must be above 0',
  'dist(temperature=0)': 'dist.temperature = 0.0: must be above 0',
  'dkd(beta=-1)': 'dkd.beta = -1.0: must be at least 0',
  'fitnet(at=0)': (
    'stage_1: fitnet.at = 0: stage_1 changes nothing before block 2; allowed '
    "are blocks 2 to 2 or 'trained'"
  ),
  'fsp(regressor="none")': (
    "fsp.regressor = 'none': after block 2 the student has 4 channels and the "
    'teacher 8'
  ),
  'ft(k=0)': 'ft.k = 0.0: must be above 0',
  'hkd(decay=1.5)': 'hkd.decay = 1.5: must be above 0 and at most 1',
  'irg(at="last")': "irg.at = 'last': a transformation leads from one block",
  'kd(temperature=0)': 'kd.temperature = 0.0: must be above 0',
  'kdsvd(k=0)': 'kdsvd.k = 0: must be above 0',
  'mgd(mask=2)': 'mgd.mask = 2.0: must be',
  'mlkd(kd_weight=-1)': 'mlkd.kd_weight = -1.0: must be at least 0',
  'nkd(gamma=-1)': 'nkd.gamma = -1.0: must be at least 0',
  'nst(at="pooled")': "nst.at = 'pooled': must be 'cuts', 'trained'",
  'ofd(learning_rate=0)': 'ofd.learning_rate = 0: must be above 0',
  'pkt(at=-1)': "pkt.at = -1: must be 'cuts', 'trained'",
  'reviewkd(warmup=-1)': 'reviewkd.warmup = -1.0: must be at least 0',
  'rkd(angle=-1)': 'rkd.angle = -1.0: must be at least 0',
  'rld(alpha_temperature=0)': 'rld.alpha_temperature = 0.0: must be above 0',
  'semckd(factor=100)': 'semckd.factor = 100: must be at most 4',
  'simkd(factor=9)': "simkd.factor = 9: must be at most 8, the teacher's",
  'sp(at=9)': 'sp.at = 9: this network has blocks 0 to 2',
  'srrl(form="other")': "srrl.form = 'other': must be one of",
  'vid(variance=0)': 'vid.variance = 0.0: must be above epsilon',
  'wsld(alpha=-2)': 'wsld.alpha = -2.0: must be at least 0',
}


def test_a_misuse_of_each():
  named = [misuse.partition('(')[0] for misuse in MISUSES]
  assert sorted(named) == sorted(set(objectives.METHODS) - {'ce'})


@pytest.mark.parametrize('misuse', MISUSES)
def test_misuse_is_one_line(misuse, tmp_path):
  ended = cli.call(
    'cbkd_jax.train',
    f'--config={tiny_run.__file__}',
    f'--workdir={tmp_path / "run"}',
    f'--config.objective={misuse}',
  )
  assert ended.code == 2
  assert ended.err.count('\n') == 1
  assert MISUSES[misuse] in ended.err
  assert not (tmp_path / 'run').exists()
