"""KDSVD: singular vectors of consecutive maps relate as the teacher's do.

Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value
Decomposition", ECCV 2018 (arXiv:1807.06819). Two published codes, two losses:

  RepDistiller: an example's matrix is (h*w) x c, so its right singular
    vectors have an entry per channel;
  mdistiller: it is (c*h) x w, so they have an entry per column of the image.

In either, the value depends on the signs of the teacher's vectors, which a
decomposition may choose freely. Here each has its largest entry positive, so
that the loss is a function of its inputs. Where singular values coincide the
gradient is finite here; the published code's is not a number. A vector whose
singular value is 0 is noise, and left out of the matching.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.places import Consecutive
from cbkd_jax.objectives.regressors import Connected
from cbkd_jax.objectives.singular import Singular, fix_signs, singular

# The student keeps so many vectors more than the teacher, to be matched.
EXTRA = 3

FORMS = ('repdistiller', 'mdistiller')


def align(student: jax.Array, teacher: jax.Array) -> jax.Array:
  """For each teacher vector the student's most similar one, of its sign.

  Args:
    student: columns `[batch, n, more]`.
    teacher: columns `[batch, n, k]`.

  Returns:
    `[batch, n, k]`.
  """
  cosine = jnp.einsum('bni,bnj->bij', student, teacher)
  size = jnp.abs(cosine)
  closest = size == jnp.max(size, axis=1, keepdims=True)
  chosen = jax.lax.stop_gradient(jnp.where(closest, jnp.sign(cosine), 0.0))
  return jnp.einsum('bni,bij->bnj', student, chosen)


def _relation(deeper: jax.Array, shallower: jax.Array) -> jax.Array:
  """`[batch, n, m, k]`: radial basis function of every pair of entries."""
  difference = deeper[:, :, None, :] - shallower[:, None, :, :]
  return jnp.exp(-(difference**2) / 8)


def kdsvd_loss(
  student: Sequence[jax.Array], teacher: Sequence[Singular]
) -> jax.Array:
  """Sum over consecutive layers of squared differences, per example.

  Args:
    student: matrices `[batch, rows, columns]`, shallowest layer first.
    teacher: for each of them what `singular` finds of the teacher's matrix
      with as many columns, its k vectors with their signs chosen; constants.

  Returns:
    A scalar.
  """
  total, previous = 0.0, None
  for ours, (values, vectors) in zip(student, teacher, strict=True):
    _, found = singular(ours, vectors.shape[-1] + EXTRA)
    scale = values[:, None, :]
    scaled = align(found, vectors) * scale, vectors * scale
    if previous is not None:
      ours, theirs = map(_relation, scaled, previous)
      total += jnp.sum((ours - theirs) ** 2)
    previous = scaled
  return total / student[0].shape[0]


def matrix(x: jax.Array, form: str) -> jax.Array:
  """An example's map as a matrix.

  Args:
    x: `[batch, h, w, c]`.
    form: 'repdistiller' or 'mdistiller', see the module.

  Returns:
    `[batch, rows, columns]`.
  """
  batch, height, width, channels = x.shape
  if form == 'mdistiller':
    return x.swapaxes(2, 3).reshape(batch, height * channels, width)
  return x.reshape(batch, height * width, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingularValueDecomposition(Consecutive, Connected):
  """`kdsvd(k=1, form='repdistiller')`, at every block's end.

  `k` vectors of the teacher are kept after each. `form` is one of the two
  published ones: 'repdistiller' needs equal channels, which a regressor gives,
  'mdistiller' needs maps of equal width. Weight 1 is mdistiller's;
  RepDistiller publishes none.
  """

  k: int = 1
  form: str = 'repdistiller'

  name: ClassVar[str] = 'kdsvd'
  paper: ClassVar[str] = (
    'Lee et al., Self-supervised Knowledge Distillation Using Singular Value '
    'Decomposition, ECCV 2018'
  )
  recipe: ClassVar[str] = 'ce + kdsvd(k=1)'
  knowledge: ClassVar[str] = 'relation'

  def __post_init__(self):
    super().__post_init__()
    self.require_positive('k')
    self.require_choice('form', FORMS)

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> dict[str, Any]:
    self.check_places()
    for cut, ours, theirs in self.pairs(student_view, teacher_view):
      shape = jax.eval_shape(lambda x: matrix(x, self.form), theirs).shape
      if self.k > min(shape[1:]):
        raise UserError(
          f'{self.name}.k = {self.k}: after block {cut} the teacher has '
          f'{min(shape[1:])} singular vectors'
        )
      if self.form == 'mdistiller' and ours.shape[2] != theirs.shape[2]:
        raise UserError(
          f"{self.name}.form = 'mdistiller': after block {cut} the student's "
          f"map is {ours.shape[2]} wide and the teacher's {theirs.shape[2]}; "
          "'repdistiller' compares maps of different sizes"
        )
    if self.form == 'mdistiller':
      return {'params': {}}
    ours, theirs = self.look(student_view), self.look(teacher_view)
    return {'params': self.init_connectors(rng, self.places, ours, theirs)}

  def loss(
    self,
    variables: dict[str, Any],
    student_view: View,
    teacher_view: View,
  ) -> tuple[jax.Array, dict[str, jax.Array], dict[str, Any]]:
    params = variables['params']
    ours = self.connect(params, self.places, self.look(student_view))
    ours = [matrix(x, self.form) for x in ours]
    teacher = []
    for theirs in self.look(teacher_view):
      theirs = jax.lax.stop_gradient(matrix(theirs, self.form))
      values, vectors = singular(theirs, self.k)
      teacher.append((values, fix_signs(vectors)))
    return kdsvd_loss(ours, teacher), {}, {}
