"""SemCKD: every student layer learns from all teacher layers, by attention.

Chen, Mei, Zhang, Wang, Wang, Feng, Chen, "Cross-Layer Distillation with
Semantic Calibration", AAAI 2021 (arXiv:2012.03236). The division of the
attention's logits by `soft` is that of the SimKD repository.

Where no unit of an embedding is active it is zero at first. It stays zero
here, with a small gradient; the published code divides by zero.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.maps import flatten, match_sizes
from cbkd_jax.objectives.method import BatchWise, Learned
from cbkd_jax.objectives.places import Looking
from cbkd_jax.objectives.regressors import apply_module, init_module
from cbkd_jax.objectives.relations import gram
from cbkd_jax.objectives.semckd_networks import Embedding, Projection


def attention(
  queries: jax.Array, keys: jax.Array, soft: float = 1.0
) -> jax.Array:
  """Per example and student layer, a distribution over teacher layers.

  Args:
    queries: `[batch, student layers, width]`.
    keys: `[batch, teacher layers, width]`.
    soft: divides the logits.

  Returns:
    `[batch, student layers, teacher layers]`.
  """
  logits = jnp.einsum('bsd,btd->bst', queries, keys, precision='highest')
  return jax.nn.softmax(logits / soft)


def semckd_loss(weights: jax.Array, distances: jax.Array) -> jax.Array:
  """Weighted sum over teacher layers, mean over examples and student layers.

  Args:
    weights: `[batch, student layers, teacher layers]`, from `attention`.
    distances: the same; mean squared differences of projected and teacher map.

  Returns:
    A scalar.
  """
  return jnp.mean(jnp.sum(weights * distances, axis=-1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SemanticCalibration(Looking, Learned, BatchWise):
  """`semckd(factor=4, soft=1)`; the embeddings' width is batch / factor.

  The student's layers are those of `at`, the teacher's are all. The
  embeddings read similarities to a batch's examples: their variables are good
  for batches of one size, a replica's or with `global_batch` the whole. The
  recipe is the authors' for CIFAR-100.
  """

  factor: int = 4
  soft: float = 1.0

  name: ClassVar[str] = 'semckd'
  paper: ClassVar[str] = (
    'Chen et al., Cross-Layer Distillation with Semantic Calibration, AAAI 2021'
  )
  recipe: ClassVar[str] = 'ce + kd(temperature=4) + 400*semckd()'
  knowledge: ClassVar[str] = 'feature'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('factor', 'soft')

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    if self.examples < self.factor:
      raise UserError(
        f'{self.name}.factor = {self.factor}: must be at most {self.examples}, '
        'the examples that its loss sees at once'
      )
    queries, keys, projections = jax.random.split(rng, 3)
    params = {
      'queries': self._init_embeddings(queries, self.places),
      'keys': self._init_embeddings(keys, range(len(teacher_view.features))),
      'projections': {},
    }
    state = {}
    for i, ours in zip(self.places, self.look(student_view)):
      own_params, own_state = {}, {}
      for j, theirs in enumerate(teacher_view.features):
        key = jax.random.fold_in(jax.random.fold_in(projections, i), j)
        own_params[f'cut_{j}'], own_state[f'cut_{j}'] = init_module(
          Projection(theirs.shape[-1]), key, ours, train=False
        )
      params['projections'][f'cut_{i}'] = own_params
      state[f'cut_{i}'] = own_state
    return {'params': params, 'state': state}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    params, state = variables['params'], variables['state']
    ours = dict(zip(self.places, self.look(student_view)))
    theirs = dict(enumerate(teacher_view.features))
    weights = attention(
      self._embed(params['queries'], ours),
      self._embed(params['keys'], theirs),
      self.soft,
    )
    distances, new_state = [], {}
    for i, x in ours.items():
      new_state[f'cut_{i}'] = {}
      for j, y in theirs.items():
        source, target = match_sizes(x, y)
        projected, new_state[f'cut_{i}'][f'cut_{j}'] = apply_module(
          Projection(y.shape[-1], self.setting.axis_name),
          params['projections'][f'cut_{i}'][f'cut_{j}'],
          state[f'cut_{i}'][f'cut_{j}'],
          source,
          train=True,
        )
        distances.append(jnp.mean((projected - target) ** 2, axis=(1, 2, 3)))
    distances = jnp.stack(distances, axis=-1).reshape(weights.shape)
    return semckd_loss(weights, distances), {}, new_state

  @property
  def _embedding(self) -> Embedding:
    return Embedding(self.examples // self.factor)

  def _init_embeddings(
    self, rng: jax.Array, cuts: Iterable[int]
  ) -> dict[str, Any]:
    row = jax.ShapeDtypeStruct((1, self.examples), jnp.float32)
    return {
      f'cut_{cut}': init_module(
        self._embedding, jax.random.fold_in(rng, cut), row
      )[0]
      for cut in cuts
    }

  def _embed(
    self, params: dict[str, Any], maps: Mapping[int, jax.Array]
  ) -> jax.Array:
    """`[batch, layers, width]`."""
    return jnp.stack(
      [
        self._embedding.apply(
          {'params': params[f'cut_{cut}']}, gram(flatten(x))
        )
        for cut, x in maps.items()
      ],
      axis=1,
    )
