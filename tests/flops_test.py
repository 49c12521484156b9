"""The work that a stage must not do, by XLA's count of the compiled step."""

import jax
import jax.numpy as jnp

from cbkd_jax import blocks, compression, counting, models, objectives, step
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data.augment import Augmentation
from cbkd_jax.stages import Training

IMAGE_SHAPE = (32, 32, 3)
BATCH = 4


def flops(lowered):
  """Of the optimised program: what is dead or done twice is gone.

  The level concerns only the machine code, which nobody runs here.
  """
  compiled = lowered.compile({'xla_backend_optimization_level': 0})
  return compiled.cost_analysis()['flops'] / BATCH


def test_stage_1_of_resnet56():
  architecture = models.build('resnet56', 10, IMAGE_SHAPE)
  student = compression.compress(
    architecture, keep=(1, 0.5, 0.5), depth=(), inherit=1
  ).network(jnp.float32, folded=False)
  teacher = architecture.network()
  hybrid = Network((*teacher.blocks[:2], student.blocks[2]), student.head)
  spec = step.StepSpec(
    student=hybrid,
    teacher=teacher,
    objective=objectives.parse('kd'),
    training=Training(steps=10, weight_decay=5e-4, clip_norm=1.0),
    trained=(False, False, True, True),
    shared=2,
    augmentation=Augmentation(4, True, (0.5,) * 3, (0.25,) * 3),
    image_shape=IMAGE_SHAPE,
  )
  teacher_shapes = blocks.shapes(teacher, IMAGE_SHAPE)
  hybrid_shapes = blocks.shapes(hybrid, IMAGE_SHAPE)
  replicas = step.Replicas('shard_map', (jax.devices()[0],))
  ours = counting.step_flops(spec, replicas, BATCH, train_size=64)

  # The frozen prefix comes twice, as two networks have it: of the same arrays
  # XLA would merge the two runs by itself.
  @jax.jit
  def naive(trained, frozen, batch_stats, teacher_variables, x, labels):
    outputs, _ = blocks.run(teacher, teacher_variables, x)
    teacher_view = blocks.view(outputs)

    def loss_fn(trained):
      variables = Variables((*frozen, *trained), batch_stats)
      outputs, new = blocks.run(hybrid, variables, x, train=spec.trained)
      empty = {'ce': {}, 'kd': {}}
      loss, _ = spec.objective.loss(
        empty,
        empty,
        blocks.view(outputs),
        teacher_view,
        {'labels': labels, 'mixed': None},
      )
      return loss, new

    return jax.value_and_grad(loss_fn, has_aux=True)(trained)

  theirs = flops(
    naive.lower(
      hybrid_shapes.params[2:],
      hybrid_shapes.params[:2],
      hybrid_shapes.batch_stats,
      teacher_shapes,
      jax.ShapeDtypeStruct((BATCH, *IMAGE_SHAPE), jnp.float32),
      jax.ShapeDtypeStruct((BATCH,), jnp.int32),
    )
  )
  # Hand-made bounds: a teacher's forward pass is some 250 MFLOP.
  assert 400e6 < theirs < 500e6
  assert ours <= 0.75 * theirs
