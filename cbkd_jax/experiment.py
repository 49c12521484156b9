"""From a config to the objects of a run, everything checked on the way."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cbkd_jax import (
  budget,
  budget_search,
  compression,
  data,
  networks,
  objective_checks,
  objectives,
  prediction,
  quantization,
  sharding,
  stages,
  step,
  stream_checks,
)
from cbkd_jax import replicas as replicas_
from cbkd_jax.blocks import Architecture, Network
from cbkd_jax.budget_search import Found
from cbkd_jax.data.augment import Augmentation, channel_stats
from cbkd_jax.errors import UserError
from cbkd_jax.fit import Pace
from cbkd_jax.stages import Stage

_STEPS_PER_CALL = 100  # where a backend runs loops well
# Images that a device is sent for one call; those of the next wait there too.
_STREAMED_BYTES = 2**28


@dataclasses.dataclass(frozen=True)
class Experiment:
  """The objects of a run; they need no data.

  Attributes:
    config: the resolved config as nested plain values; its keep ratios are
      those that were found where it has a target.
    architecture: the teacher's, its batch statistics over all replicas.
    local: the same without a replicas' axis, for work outside of a step.
    student: the compressed network.
    local_student: the same without a replicas' axis.
    stages: the plan.
    teacher_training: how the teacher is trained.
    replicas: the devices that share a batch.
    pace: how often what happens.
    found: how the student meets `compression.target`, if there is one.
  """

  config: Mapping[str, Any]
  architecture: Architecture
  local: Architecture
  student: compression.Student
  local_student: compression.Student
  stages: tuple[Stage, ...]
  teacher_training: stages.Training
  replicas: step.Replicas
  pace: Pace
  found: Found | None = None

  @property
  def dtype(self) -> Any:
    return jnp.dtype(self.config['compute_dtype'])

  @property
  def probes(self) -> bool:
    """Whether the student is not known before the teacher is there."""
    wanted = self.config['compression']['probe']
    return wanted and not self.found.probed

  @property
  def image_shape(self) -> tuple[int, int, int]:
    return tuple(self.config['data']['image_shape'])

  @property
  def streams(self) -> bool:
    """Whether images are read from disk as the steps need them."""
    return self.config['data']['pipeline'] == 'stream'

  @functools.cached_property
  def teacher_network(self) -> Network:
    return self.architecture.network()

  def network(self, stage: Stage, local: bool = False) -> Network:
    """The network that a stage trains: a hybrid, or the folded student.

    Args:
      stage: the stage.
      local: without a replicas' axis.
    """
    sizes = self.local_student if local else self.student
    teacher = sizes.teacher.network()
    student = sizes.network(self.dtype, stage.folded)
    blocks = tuple(
      s if is_student else t
      for s, t, is_student in zip(student.blocks, teacher.blocks, stage.student)
    )
    # The head belongs to the deepest block.
    head = student.head if stage.student[-1] else teacher.head
    return Network(blocks, head)

  def predicting_network(self, stage: Stage) -> Network:
    """The same, with the head that the objective may give it; local."""
    return prediction.network(
      objectives.parse(stage.objective),
      self.network(stage, local=True),
      self.local.head(),
      self.local.widths[-1],
    )

  def objective(
    self, stage: Stage, local: bool = False
  ) -> objectives.Objective:
    """What a stage minimises, bound to it.

    Args:
      stage: the stage.
      local: without a replicas' axis.
    """
    main = stage.prepares or stage
    setting = dataclasses.replace(
      self._setting(main.name, stage.training),
      trained=main.trained_blocks,
      axis_name=None if local else self.replicas.axis,
      preparing=stage.prepares is not None,
      prepares_blocks=any(stage.trained),
    )
    return objectives.parse(stage.objective).bind(setting)

  def teacher_objective(self) -> objectives.Objective:
    """What the teacher's own training minimises, bound to it."""
    setting = self._setting('teacher', self.teacher_training)
    expression = self.config['teacher']['objective']
    return objectives.parse(expression, 'teacher.objective').bind(setting)

  def _setting(
    self, name: str, training: stages.Training
  ) -> objectives.Setting:
    """A phase in which all blocks train."""
    blocks = len(self.architecture.widths)
    return objectives.Setting(
      blocks=blocks,
      trained=tuple(range(blocks)),
      name=name,
      steps=training.steps,
      batch_size=self.config['batch_size'],
      train_size=self.config['data']['train_size'],
      replicas=self.replicas.count,
      micro_batches=self.config['micro_batches'],
      axis_name=self.replicas.axis,
    )

  def spec(
    self, stage: Stage, augmentation: Augmentation, local: bool = False
  ) -> step.StepSpec:
    """What is static in a stage's step."""
    objective = self.objective(stage, local)
    architecture = self.local if local else self.architecture
    teacher = architecture.network() if objective.uses_teacher else None
    fixed_views = self.fixed_views(stage)
    if fixed_views:
      views = self.config['cache']['views']
      augmentation = augmentation.of_fixed_views(views)
    student = self.network(stage, local)
    if stage.quantize:
      synced = self.config['sync_batch_norm'] and not local
      axis = self.replicas.axis if synced else None
      student = quantization.training(student, axis)
    if not local:
      student = sharding.gathered(student, self.replicas)
      teacher = teacher and sharding.gathered(teacher, self.replicas)
    return step.StepSpec(
      student=student,
      teacher=teacher,
      objective=objective,
      training=stage.training,
      trained=stage.trained,
      shared=stage.shared,
      augmentation=augmentation,
      image_shape=self.image_shape,
      sync_batch_norm=self.config['sync_batch_norm'],
      micro_batches=self.config['micro_batches'],
      remat=self.config['remat'],
      fixed_views=fixed_views,
      axis=self.replicas.axis,
    )

  def fixed_views(self, stage: Stage) -> int | None:
    """How many views of each image a stage has, for what it keeps of them.

    None where nothing is to be kept: the views are drawn anew then.
    """
    cache = self.config['cache']
    constant = not stage.trained[0] or (
      objectives.parse(stage.objective).uses_teacher
    )
    if constant and cache['thaw' if stage.folded else 'prefix']:
      return max(1, cache['views'])
    return None

  def teacher_spec(self, augmentation: Augmentation) -> step.StepSpec:
    """What is static in the teacher's own training step."""
    network = sharding.gathered(self.teacher_network, self.replicas)
    return step.StepSpec(
      student=network,
      teacher=None,
      objective=self.teacher_objective(),
      training=self.teacher_training,
      trained=(True,) * len(network.parts),
      shared=0,
      augmentation=augmentation,
      image_shape=self.image_shape,
      sync_batch_norm=self.config['sync_batch_norm'],
      micro_batches=self.config['micro_batches'],
      remat=self.config['remat'],
      axis=self.replicas.axis,
    )

  def rng(self, phase: str) -> jax.Array:
    """The key of a phase's randomness."""
    return jax.random.fold_in(jax.random.key(self.config['seed']), _hash(phase))

  def sample_seed(self, phase: str) -> int:
    """Chooses the order of a phase's examples."""
    return self.config['seed'] * 2**32 + _hash(phase)


def _hash(phase: str) -> int:
  return zlib.crc32(phase.encode())


def build(
  config: Mapping[str, Any],
  devices: tuple[Any, ...] | None = None,
  found: Found | None = None,
) -> Experiment:
  """Checks a config as a whole and makes the run's objects.

  Args:
    config: every field, as nested plain values, each checked by itself.
    devices: default all, of all processes.
    found: the student that meets `compression.target`; None: is found here,
      which takes seconds, or a minute where it means to compile and measure.

  Returns:
    The experiment.

  Raises:
    UserError: naming the field, its value and what is allowed.
  """
  data, teacher = config['data'], config['teacher']
  replicas = _replicas(config, devices or tuple(jax.devices()))
  axis = replicas.axis if config['sync_batch_norm'] else None
  architecture, local = (
    networks.model(config, 'teacher.model', name) for name in (axis, None)
  )
  plan = stages.plan(
    order=config['order'],
    blocks=len(architecture.widths),
    inherit=config['inherit'],
    train_size=data['train_size'],
    batch_size=config['batch_size'],
    objective=config['objective'],
    stage=config['stage'],
    stage_overrides=config['stage_overrides'],
    thaw=config['thaw'],
  )
  plan_augmentation(config)  # Making it is the check.
  smaller = min(data['image_shape'][:2])
  if data['cutout'] > smaller:
    raise UserError(
      f'data.cutout = {data["cutout"]}: must be at most {smaller}, the smaller '
      'side of data.image_shape'
    )
  # Parsing is the check; the field is the one where it was written.
  objectives.parse(config['objective'])
  for name, fields in config['stage_overrides'].items():
    if fields['objective'] is not None:
      objectives.parse(fields['objective'], f'stage_overrides.{name}.objective')
  if config['thaw']['objective'] is not None:
    objectives.parse(config['thaw']['objective'], 'thaw.objective')
  plan = stages.with_pre_stages(
    plan, lambda expression: objectives.parse(expression).pre_stage
  )
  families = [
    networks.family(config, teacher, axis_name)
    for teacher, axis_name in ((architecture, axis), (local, None))
  ]
  keep = config['compression']
  if keep['probe']:
    networks.check_probe(config, local, families[1])
  if keep['target']:
    if found is None:
      found = budget_search.find(
        networks.choice(config, local, families[1], plan[-1].objective),
        budget.parse(keep['target']),
        next(d for d in replicas.devices if d in jax.local_devices()),
      )
    keep = {**keep, 'keep': found.keep}
    config = {**config, 'compression': keep}
  student, local_student = (
    networks.student(config, teacher, family, keep['keep'])
    for teacher, family in zip((architecture, local), families)
  )
  on_cpu = replicas.devices[0].platform == 'cpu'
  per_call = config['steps_per_call'] or (1 if on_cpu else _STEPS_PER_CALL)
  if data['pipeline'] == 'stream' and not config['steps_per_call']:
    examples = config['batch_size'] // len(replicas.devices)
    size = examples * math.prod(data['image_shape'])
    per_call = max(1, min(per_call, _STREAMED_BYTES // size))
  teacher_fields = {
    k: v
    for k, v in teacher.items()
    if k not in ('model', 'checkpoint', 'objective')
  }
  experiment = Experiment(
    config=config,
    architecture=architecture,
    local=local,
    student=student,
    local_student=local_student,
    stages=plan,
    teacher_training=stages.training(
      teacher_fields, data['train_size'], config['batch_size']
    ),
    replicas=replicas,
    pace=Pace(
      batch_size=config['batch_size'],
      per_call=per_call,
      checkpoint_every=config['checkpoint_every_steps'],
      log_every=config['log_every_steps'],
      fixed=bool(config['steps_per_call']),
    ),
    found=found,
  )
  objective_checks.check(experiment)
  _check_quantization(experiment)
  _check_cache(experiment)
  stream_checks.check(experiment)
  return experiment


def settled(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """The config with the keep ratios that its target leads to, and no target.

  For commands that build it more than once, with changes that should not
  change the student.
  """
  fields = config['compression']
  if not fields['target']:
    return config
  keep = build(config).config['compression']['keep']
  fields = {**fields, 'keep': keep, 'target': '', 'probe': False}
  return {**config, 'compression': fields}


def _replicas(
  config: Mapping[str, Any], devices: tuple[Any, ...]
) -> step.Replicas:
  """The devices, as the config wants them used."""
  count, spmd = len(devices), config['spmd']
  data, model = config['mesh']['data'], config['mesh']['model']
  if model > 1 and spmd != 'jit':
    raise UserError(
      f"mesh.model = {model}: must be 1 with spmd = {spmd!r}; only 'jit' "
      'divides arrays'
    )
  if (count // model if data is None else data) * model != count:
    raise UserError(
      f'mesh.data = {data}, mesh.model = {model}: their product must be the '
      f'number of devices, {count}'
    )
  if spmd == 'jit' and not config['sync_batch_norm']:
    raise UserError(
      "sync_batch_norm = False: must be True with spmd = 'jit', whose program "
      'sees the whole batch'
    )
  if config['batch_size'] % count:
    raise UserError(
      f'batch_size = {config["batch_size"]}: must be a multiple of the '
      f'number of devices, {count}'
    )
  local, parts = config['batch_size'] // count, config['micro_batches']
  if local % parts:
    raise UserError(
      f'micro_batches = {parts}: must divide the batch of a device, {local}'
    )
  return step.Replicas(spmd, replicas_.in_order(devices, spmd, model), model)


def _check_quantization(experiment: Experiment) -> None:
  last = experiment.stages[-1]
  predictor = objectives.parse(last.objective).predictor
  if last.quantize and predictor:
    raise UserError(
      f"thaw.quantize = {last.quantize!r}: must be '' with "
      f'{predictor.method.name}, which gives the student a head that '
      'would not train with it'
    )


def _check_cache(experiment: Experiment) -> None:
  cache, data = experiment.config['cache'], experiment.config['data']
  if cache['views'] * data['train_size'] >= 2**31:
    raise UserError(
      f'cache.views = {cache["views"]}: {data["train_size"]} examples allow '
      f'at most {(2**31 - 1) // data["train_size"]}'
    )
  for stage in experiment.stages:
    if experiment.fixed_views(stage) is None:
      continue
    for name in 'mixup', 'cutmix':
      if data[name]:
        raise UserError(
          f'data.{name} = {data[name]}: must be 0 where {stage.name} keeps '
          "what it can't change (cache.prefix, cache.thaw)"
        )
    needs = experiment.objective(stage).needs
    if 'second_view' in needs and experiment.fixed_views(stage) == 1:
      raise UserError(
        f'cache.views = {cache["views"]}: {stage.objective!r} looks at two '
        f'views of an image in {stage.name}; must be at least 2'
      )


def plan_augmentation(config: Mapping[str, Any]) -> Augmentation:
  """The augmentation as far as the config alone tells; for plans."""
  data = config['data']
  channels = data['image_shape'][-1]
  mean = tuple(data['mean']) or (0.5,) * channels
  return _augmentation(data, mean, tuple(data['std']) or (0.25,) * channels)


def load_data(values: Mapping[str, Any]) -> data.Dataset:
  """Reads the data set, or opens it, and checks it against the config."""
  wanted = data.Wanted.of(values['data'])
  if values['data']['pipeline'] == 'resident':
    return data.load(wanted)
  return data.stream(wanted)


def augmentation_for(
  values: Mapping[str, Any], train: data.Split | data.Streamed
) -> Augmentation:
  """The config's augmentation, mean and std measured where it has none."""
  fields = values['data']
  mean, std = fields['mean'], fields['std']
  if not (mean and std):
    measured = channel_stats(train.images)
    mean, std = mean or measured[0], std or measured[1]
  return _augmentation(fields, tuple(mean), tuple(std))


def _augmentation(
  fields: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]
) -> Augmentation:
  return Augmentation(
    pad=fields['pad'],
    flip=fields['flip'],
    mean=mean,
    std=std,
    alternating_flip=fields['alternating_flip'],
    cutout=fields['cutout'],
    mixup=fields['mixup'],
    cutmix=fields['cutmix'],
  )


def local_batch(experiment: Experiment) -> int:
  """Examples per device and step."""
  devices = len(experiment.replicas.devices)
  return experiment.pace.batch_size // devices
