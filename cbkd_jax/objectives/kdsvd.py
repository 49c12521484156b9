"""KDSVD: singular vectors of consecutive maps relate as the teacher's do.

Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value
Decomposition", ECCV 2018 (arXiv:1807.06819). Two published codes, two losses:

  RepDistiller: an example's matrix is (h*w) x c, so its right singular
    vectors have an entry per channel;
  mdistiller: it is (c*h) x w, so they have an entry per column of the image.

In either, the value depends on the signs of the teacher's vectors, which a
decomposition may choose freely. Here each has its largest entry positive, so
that the loss is a function of its inputs. Singular vectors come from the Gram
matrix, with a derivative that stays finite (1/gap becomes gap/(gap^2 + e^2))
where singular values coincide; the published code's is not a number there.
A vector whose singular value is 0 is noise, and left out of the matching.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.fsp import Consecutive
from cbkd_jax.objectives.maps import l2_normalize
from cbkd_jax.objectives.regressors import Connected

# Gaps between squared singular values below this share of the largest one
# count as none.
BROADENING = 1e-5
# The student keeps so many vectors more than the teacher, to be matched.
EXTRA = 3

FORMS = ('repdistiller', 'mdistiller')
Singular = tuple[jax.Array, jax.Array]


@jax.custom_jvp
def eigh(gram: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(ascending eigenvalues `[batch, n]`, eigenvectors `[batch, n, n]`).

  The vectors' derivative is finite where eigenvalues coincide.
  """
  return tuple(jnp.linalg.eigh(gram, symmetrize_input=False))


@eigh.defjvp
def _eigh_jvp(primals, tangents):
  values, vectors = eigh(*primals)
  (change,) = tangents
  change = jnp.einsum('bni,bnm,bmj->bij', vectors, change, vectors)
  gap = values[:, None, :] - values[:, :, None]
  # At least 1, see `singular`: the maximum is for matrices of zeros.
  largest = jnp.maximum(values[:, -1], 1.0)[:, None, None]
  mixing = gap / (gap**2 + (BROADENING * largest) ** 2) * change
  tangent = jnp.einsum('bii->bi', change), vectors @ mixing
  return (values, vectors), tangent


def singular(x: jax.Array, count: int) -> Singular:
  """The largest singular values and their right vectors.

  Args:
    x: `[batch, rows, columns]`.
    count: how many to keep; those there are where that is less.

  Returns:
    The values, descending, at norm 1 per example `[batch, kept]`; the vectors
    as columns `[batch, columns, kept]`, of norm 1 and arbitrary sign. Beyond
    the matrix's rank both are 0: any vector would do there.
  """
  # Neither result depends on the matrix's scale; a Gram matrix's range does.
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=(1, 2), keepdims=True))
  x = x / jnp.where(scale > 0, scale, 1.0)
  wide = x.shape[1] < x.shape[2]
  product = 'bnr,bmr->bnm' if wide else 'brn,brm->bnm'
  values, vectors = eigh(jnp.einsum(product, x, x))
  rounding = values.shape[1] * jnp.finfo(values.dtype).eps * values[:, -1:]
  positive = (values > rounding)[:, ::-1][:, :count]
  values = jnp.where(positive, values[:, ::-1][:, :count], 1.0)
  values = jnp.where(positive, jnp.sqrt(values), 0.0)
  vectors = vectors[:, :, ::-1][:, :, :count]
  if wide:
    vectors = l2_normalize(jnp.einsum('brn,brk->bnk', x, vectors), axis=1)
  return l2_normalize(values), jnp.where(positive[:, None, :], vectors, 0.0)


def fix_signs(vectors: jax.Array) -> jax.Array:
  """Columns `[batch, n, k]` with their entry of largest size positive."""
  index = jnp.argmax(jnp.abs(vectors), axis=1, keepdims=True)
  largest = jnp.take_along_axis(vectors, index, axis=1)
  return jnp.where(largest < 0, -vectors, vectors)


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
  """A map `[batch, h, w, c]` as `[batch, rows, columns]`, see the module."""
  batch, height, width, channels = x.shape
  if form == 'mdistiller':
    return x.swapaxes(2, 3).reshape(batch, height * channels, width)
  return x.reshape(batch, height * width, channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingularValueDecomposition(Consecutive, Connected):
  """`kdsvd(k=1, form='repdistiller')`, or the form of `'mdistiller'`.

  `k` vectors of the teacher are kept after every block. Weight 1 is
  mdistiller's; RepDistiller publishes none. A regressor serves the first
  form, which needs equal channels; the second needs equal widths of the maps.
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
    student, teacher = self.look(student_view), self.look(teacher_view)
    for cut, ours, theirs in zip(self.places, student, teacher):
      shape = jax.eval_shape(
        functools.partial(matrix, form=self.form), theirs
      ).shape
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
    return {'params': self.init_connectors(rng, self.places, student, teacher)}

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
