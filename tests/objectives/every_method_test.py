"""Every method in a whole CBKD run, and what it can and can't do there."""

import functools
import json

import cli
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_run

import cbkd_jax
from cbkd_jax import (
  blocks,
  checkpoints,
  evaluate,
  experiment,
  objectives,
  phases,
  step,
  student,
)
from cbkd_jax.blocks import HeadOutput, View
from cbkd_jax.data.augment import normalise
from cbkd_jax.errors import Preempted
from cbkd_jax.objectives import simkd
from cbkd_jax.objectives.method import AVAILABLE
from cbkd_jax.replicas import spmd

pytestmark = pytest.mark.usefixtures('quick_compilation')

STEPS = {'stage__steps': 3, 'thaw__steps': 3, 'checkpoint_every_steps': 2}

# Options where the defaults are too much for a tiny network.
OPTIONS = {
  'crd': 'dimension=4, negatives=6',
  'cc': 'dimension=4',
  'semckd': 'factor=2, at="last"',
}

# Together, since most of a run is compiling the network. Those with a
# pre-stage or a prediction of their own are alone.
GROUPS = {
  'response': ('dkd', 'nkd', 'dist', 'mlkd', 'rld', 'wsld', 'ctkd', 'kd'),
  'relation': ('sp', 'cc', 'rkd', 'pkt', 'irg', 'hkd', 'fsp', 'crd', 'kdsvd'),
  'feature': ('fitnet', 'at', 'vid', 'nst', 'mgd', 'srrl'),
  'regressed': ('ofd', 'reviewkd', 'semckd'),
  'ab': ('ab',),
  'ft': ('ft',),
  'simkd': ('simkd',),
}


def call(name):
  return f'{name}({OPTIONS.get(name, "")})'


def test_no_method_is_left_out():
  assert sorted(sum(GROUPS.values(), ())) == sorted(
    set(objectives.METHODS) - {'ce'}
  )


@pytest.fixture(scope='module')
def teacher(tmp_path_factory, quick_compilation):
  """The workdir of a run that has a teacher."""
  directory = tmp_path_factory.mktemp('teacher') / 'run'
  changes = {'order': 'scratch', 'thaw__steps': 1, 'stage__steps': 1}
  tiny_run.run(directory, changes)
  return directory


@pytest.mark.parametrize('group', GROUPS)
def test_in_two_stages_and_a_thaw(group, teacher, tmp_path, monkeypatch):
  names = GROUPS[group]
  # Without labels: it is the methods alone that move the blocks.
  expression = ' + '.join(f'0.1*{call(name)}' for name in names)
  if group == 'ab':  # which has no loss after its pre-stage
    expression = 'ce + ab()'
  changes = STEPS | {
    'objective': expression,
    'teacher__checkpoint': str(teacher),
  }
  seen = []

  def fit(name, spec, state, *arguments, **keywords):
    before = jax.device_get(state)
    after, last = real_fit(name, spec, state, *arguments, **keywords)
    seen.append((name, spec, before, jax.device_get(after)))
    return after, last

  real_fit = phases.fit
  monkeypatch.setattr(phases, 'fit', fit)
  whole = tmp_path / 'whole'
  summary = tiny_run.run(whole, changes)
  found = [stage['name'] for stage in summary['stages']]
  assert found == {
    'ab': ['stage_1_pre', 'stage_1', 'stage_2_pre', 'stage_2', 'thaw'],
    'ft': [
      *('stage_1_pre', 'stage_1', 'stage_2_pre', 'stage_2'),
      *('thaw_pre', 'thaw'),
    ],
  }.get(group, ['stage_1', 'stage_2', 'thaw'])
  assert sum(stage['steps'] for stage in summary['stages']) == 9
  for phase, spec, before, after in seen:
    for i, trained in enumerate(spec.trained):
      one = before.params[i], before.batch_stats[i]
      two = after.params[i], after.batch_stats[i]
      assert tiny.same(one, two) != trained, f'{phase}, part {i}'
    for key, own in before.params[-1].items():
      if jax.tree.leaves(own):
        assert not tiny.same(own, after.params[-1][key]), f'{phase}: {key}'
    for leaf in jax.tree.leaves(after._replace(rng=())):
      assert np.isfinite(np.asarray(leaf, np.float64)).all()
  rows = [json.loads(line) for line in (whole / 'metrics.jsonl').open()]
  steps = [row for row in rows if 'loss' in row]
  assert len(steps) == 9
  assert all(name in row for row in steps for name in names)

  if group == 'simkd':
    _check_student_with_a_head(whole, summary)

  # Interrupted once in the middle of a phase, at a step without a checkpoint.
  ends, log = dict(_ends(seen)), (whole / 'metrics.jsonl').read_bytes()
  seen.clear()
  parts = tmp_path / 'parts'
  calls = iter(range(1000))
  with pytest.raises(Preempted, match='step 1 of'):
    tiny_run.run(parts, changes, lambda: next(calls) == _INTERRUPTED[group])
  tiny_run.run(parts, changes)
  for phase, end in _ends(seen):
    assert tiny.same(end, ends[phase]), phase
  assert len(seen) >= 2
  assert (parts / 'metrics.jsonl').read_bytes() == log
  assert tiny.same(*(student.read(d / 'student')[1] for d in (whole, parts)))


def _check_student_with_a_head(directory, summary):
  """The saved student predicts with SimKD's projector and teacher's head."""
  network, variables, _ = student.read(directory / 'student')
  assert set(variables.params[-1]) == {'projector', 'head'}
  projector = blocks.count_params(variables.params[-1]['projector'])
  # The deepest map has 4 channels, the teacher's 8, half of them inside;
  # scales and biases of three normalisations.
  assert projector == 4 * 4 + 9 * 4 * 4 + 4 * 8 + 2 * (4 + 4 + 8)
  teacher = checkpoints.read_variables(
    checkpoints.teacher_checkpoint(str(directory)),
    blocks.shapes(
      tiny_run.model(10, (8, 8, 1), np.float32, None).network(), (8, 8, 1)
    ),
  )
  assert tiny.same(variables.params[-1]['head'], teacher.params[-1])
  count = blocks.count_params(variables.params)
  assert summary['student']['params'] == count
  # Its own head, which the objective made useless, is gone.
  assert blocks.count_params(variables.params[:-1]) + projector + 90 == count
  found = evaluate.evaluate(directory, batch_size=16)
  for name in 'accuracy', 'cross_entropy', 'agreement', 'kl_to_teacher':
    assert found['student'][name] == pytest.approx(
      summary['student'][name], rel=1e-4, abs=1e-6
    )
  images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 1), np.uint8)
  logits = cbkd_jax.load_student(directory)(images)
  x = normalise(images, student.read(directory / 'student')[2])
  outputs, _ = blocks.run(network, variables, x, stop=3)
  own = variables.params[-1], variables.batch_stats[-1]
  projected = simkd.Projector(8, 2).apply(
    {
      'params': own[0]['projector'],
      'batch_stats': own[1]['projector'],
    },
    outputs[-1].output,
    train=False,
  )
  layer = own[0]['head']['classifier']
  expected = projected.mean((1, 2)) @ layer['kernel'] + layer['bias'][None]
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('group', GROUPS)
def test_several_steps_in_a_call(group):
  """A loop's carry must keep its shapes and types; traced, not run."""
  expression = 'ce + ' + ' + '.join(call(name) for name in GROUPS[group])
  exp = experiment.build(
    tiny_run.values(**STEPS, objective=expression, spmd='shard_map')
  )
  for stage in exp.stages:
    spec = exp.spec(stage, tiny.PLAIN)
    shapes = (
      blocks.shapes(network, (8, 8, 1))
      for network in (spec.student, spec.teacher)
    )
    student_shapes, teacher_shapes = shapes
    state = step.state_shapes(spec, student_shapes, teacher_shapes)
    found, metrics = jax.eval_shape(
      spmd(
        functools.partial(step.train_steps, spec, False),
        exp.replicas,
        replicated=4,
        summed=True,
      ),
      state,
      teacher_shapes,
      jax.ShapeDtypeStruct((96, 8, 8, 1), jnp.uint8),
      jax.ShapeDtypeStruct((96,), jnp.int32),
      jax.ShapeDtypeStruct((4, 3, 4), jnp.int32),
    )
    assert jax.tree.map(lambda x: (x.shape, x.dtype), found) == jax.tree.map(
      lambda x: (x.shape, x.dtype), state
    )
    assert metrics['loss'].shape == (3,)


# The call of `interrupted` that is answered with yes: in stage_2 or, with a
# pre-stage of one step, in stage_1.
_INTERRUPTED = dict.fromkeys(GROUPS, 7) | {'ab': 5, 'ft': 5}


def _ends(seen):
  return [(name, after) for name, _, _, after in seen]


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
  params, state = objective.init(jax.random.key(1), half(ours), half(theirs))

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
