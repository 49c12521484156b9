"""Bytes against the sums in the compiled program; time against arithmetic."""

import math
import re

import jax
import jax.numpy as jnp
import pytest
import tiny
import tiny_run

from cbkd_jax import experiment, machines, step, traffic

pytestmark = pytest.mark.usefixtures('quick_compilation')


def sums(spec, replicas):
  """Bytes of each all-reduce, in the order of the program's text."""
  program = step.compiled_train(spec, replicas)
  text = program.compiled(
    step.state_shapes(spec),
    spec.unshared(spec.shapes()[1]),
    step.Resident(
      jax.ShapeDtypeStruct((96, *spec.image_shape), jnp.uint8),
      jax.ShapeDtypeStruct((96,), jnp.int32),
    ),
    step.Drawn(jax.ShapeDtypeStruct((4, 1, 4), jnp.int32)),
  ).as_text()
  found = []
  for result in re.findall(r' = (.*?) all-reduce(?:-start)?\(', text):
    shapes = re.findall(r'(\w+)\[([\d,]*)\]', result)
    assert {kind for kind, _ in shapes} == {'f32'}
    found.append(
      sum(
        4 * math.prod(map(int, filter(None, s.split(',')))) for _, s in shapes
      )
    )
  return found


@pytest.mark.parametrize(
  ('phase', 'changes'),
  [
    ('stage_2', {'objective': 'ce + mgd()'}),  # with parameters of its own
    ('thaw', {}),
    ('thaw', {'sync_batch_norm': False}),
    ('stage_1', {'objective': 'ce + mlkd()'}),  # a second view
  ],
)
def test_it_is_what_the_program_sums(phase, changes):
  exp = experiment.build(tiny_run.values(**changes))
  (stage,) = (s for s in exp.stages if s.name == phase)
  spec = exp.spec(stage, tiny.PLAIN)
  counted = traffic.step_traffic(spec)
  found = sums(spec, exp.replicas)
  assert len(found) == counted.reductions
  assert 0.98 * counted.bytes <= sum(found) <= counted.bytes
  if 'second_view' not in spec.objective.needs:  # else sums meet in sums
    assert sum(found) == counted.bytes


def test_the_arithmetic():
  """Of resnet8's last block, by hand."""
  exp = experiment.build(
    tiny_run.values(teacher__model='resnet8', compression__keep=(1.0, 1.0, 1.0))
  )
  spec = exp.spec(exp.stages[0], tiny.PLAIN)
  params = sum(x.size for x in jax.tree.leaves(spec.shapes()[0].params[2:]))
  channels = [
    x.size
    for path, x in jax.tree.leaves_with_path(spec.shapes()[0].batch_stats[2])
    if path[-1].key == 'mean'
  ]
  found = traffic.step_traffic(spec)
  assert found.gradients == 4 * params
  assert found.batch_norm == 4 * 2 * 2 * sum(channels)
  assert found.metrics == 4 * 4  # loss, ce, kd, accuracy
  assert found.reductions == 1 + 2 * len(channels)


def test_sums_take_time_and_efficiency_falls():
  counted = traffic.Traffic(1000, 200, 16, 5)
  machine = machines.Machine('', 4, 1e6, 1e3, 0.01)
  seconds = machines.sum_seconds(counted, machine)
  assert seconds == pytest.approx(2 * 0.75 * 1.216 + 0.05)
  # Two seconds of its own work.
  share = machines.efficiency(1e6, counted, machine, 0.5)
  assert share == pytest.approx(2 / (2 + seconds))
  one = machine._replace(devices=1, latency=0.0)
  assert machines.efficiency(1e6, counted, one, 0.5) == 1
