"""What a phase minimises: a weighted sum of terms.

The step knows no method by name: it hands each term the two `View`s and what
the term's method says it `needs`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cbkd_jax.blocks import View
from cbkd_jax.objectives.method import BatchWise, Learned, Method, Setting
from cbkd_jax.objectives.places import Looking

Variables = dict[str, Any]

# What belongs to single examples, and is gathered with them.
_PER_EXAMPLE = ('labels', 'indices', 'keys', 'second_view')


@dataclasses.dataclass(frozen=True)
class Term:
  """`weight * name(options)`; `key` is its name in metrics, unique."""

  weight: float
  key: str
  method: Method

  def __str__(self) -> str:
    """The term in full, options included."""
    options = ', '.join(
      f'{name}={getattr(self.method, name)!r}' for name in self.method.options()
    )
    name = self.method.name
    call = f'{name}({options})' if options else name
    return call if self.weight == 1 else f'{self.weight:.12g}*{call}'


@dataclasses.dataclass(frozen=True)
class Objective:
  """A weighted sum of terms."""

  terms: tuple[Term, ...]

  def __str__(self) -> str:
    return ' + '.join(map(str, self.terms))

  @property
  def uses_teacher(self) -> bool:
    """Whether any term looks at the teacher."""
    return any(term.method.uses_teacher for term in self.terms)

  @property
  def needs(self) -> frozenset[str]:
    """What the terms need beyond the views."""
    return frozenset(n for term in self.terms for n in term.method.needs)

  @property
  def predictor(self) -> Term | None:
    """The term whose variables the student's prediction needs, if any."""
    return next((t for t in self.terms if t.method.predicts), None)

  @property
  def pre_stage(self) -> dict[str, float]:
    """The pre-stages' largest shares of the phase's steps.

    By what they train: 'variables', the methods' own alone, or 'blocks' too.
    """
    found: dict[str, float] = {}
    for term in self.terms:
      method = term.method
      if method.has_pre_stage:
        share = max(method.pre_fraction, found.get(method.prepares, 0.0))
        found[method.prepares] = share
    return found

  def bind(self, setting: Setting) -> 'Objective':
    """The objective of a phase; of its pre-stage, the terms that have one.

    A pre-stage's losses are not the weighted ones: they count once each.

    Raises:
      UserError: a term looks where this phase's networks have nothing.
    """
    terms = []
    for term in self.terms:
      if setting.preparing and not _takes_part(term.method, setting):
        continue
      method = dataclasses.replace(term.method, setting=setting)
      if isinstance(method, Looking):
        _ = method.places  # Finding them is the check.
      weight = 1.0 if setting.preparing else term.weight
      terms.append(dataclasses.replace(term, weight=weight, method=method))
    return Objective(tuple(terms))

  @property
  def setting(self) -> Setting:
    """The phase's; the default one before `bind`."""
    return self.terms[0].method.setting

  @property
  def micro_batch(self) -> int:
    """Examples that the loss of one replica sees at once."""
    return self.setting.micro_batch

  @property
  def has_variables(self) -> bool:
    """Whether any term has some, trained or not."""
    return any(type(t.method).init is not Method.init for t in self.terms)

  @property
  def goes_on(self) -> bool:
    """Whether the next phase, or the student, may want its variables."""
    return any(
      t.method.predicts or type(t.method).adopt is not Method.adopt
      for t in self.terms
    )

  def learning_rates(self) -> dict[str, float]:
    """The terms' own learning rates, of those that have one."""
    found = {}
    for term in self.terms:
      method = term.method
      if isinstance(method, Learned) and method.learning_rate is not None:
        found[term.key] = method.learning_rate
    return found

  def init(
    self, rng: jax.Array, student_view: View, teacher_view: View
  ) -> tuple[Variables, Variables]:
    """Each term's trainable parameters and its other state, by term.

    Raises:
      UserError: a term can't work between these networks.
    """
    views = _at_least_float32((student_view, teacher_view))
    params, state = {}, {}
    for i, term in enumerate(self.terms):
      variables = term.method.init(jax.random.fold_in(rng, i), *views)
      params[term.key] = variables.get('params', {})
      state[term.key] = variables.get('state', {})
    return params, state

  def adopt(
    self,
    variables: tuple[Variables, Variables],
    previous: tuple[Variables, Variables],
  ) -> tuple[Variables, Variables]:
    """Initial (params, state), given those of the phase before."""
    params, state = (dict(tree) for tree in variables)
    for term in self.terms:
      key = term.key
      if key in previous[0]:
        adopted = term.method.adopt(
          {'params': params[key], 'state': state[key]},
          {'params': previous[0][key], 'state': previous[1][key]},
        )
        params[key] = adopted.get('params', {})
        state[key] = adopted.get('state', {})
    return params, state

  def predict(
    self,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    student_view: View,
    teacher_head: Any,
  ) -> jax.Array:
    """The student's logits, of the term that has its prediction."""
    term = self.predictor
    variables = {'params': params[term.key], 'state': state[term.key]}
    view = _at_least_float32(student_view)
    return term.method.predict(variables, view, teacher_head)

  def loss(
    self,
    params: Mapping[str, Any],
    state: Mapping[str, Any],
    student_view: View,
    teacher_view: View,
    available: Mapping[str, Any],
  ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Variables]]:
    """The weighted sum over this replica's examples, in float32 at least.

    Args:
      params: trainable parameters by term.
      state: other variables by term.
      student_view: the student's outputs on the batch.
      teacher_view: the teacher's outputs on the same batch.
      available: what the terms need beyond the views, by name.

    Returns:
      The scalar, and (each term's unweighted value by its key, with whatever
      metrics it adds; the terms' new state).
    """
    views = _at_least_float32((student_view, teacher_view))
    total, metrics, new_state = jnp.float32(0), {}, {}
    for i, term in enumerate(self.terms):
      method = term.method
      needed = {name: available[name] for name in method.needs}
      if 'second_view' in needed:
        needed['second_view'] = _at_least_float32(needed['second_view'])
      if 'keys' in needed:
        fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
        needed['keys'] = fold(needed['keys'], i)
      seen = views
      if isinstance(method, BatchWise) and method.global_batch:
        own = {n: v for n, v in needed.items() if n in _PER_EXAMPLE}
        seen, own = _gather((views, own), method.setting.axis_name)
        needed |= own
      value, extra, new_state[term.key] = method.loss(
        {'params': params[term.key], 'state': state[term.key]}, *seen, **needed
      )
      total += term.weight * value
      metrics[term.key] = value
      metrics |= {f'{term.key}/{name}': v for name, v in extra.items()}
    return total, (metrics, new_state)


def _takes_part(method: Method, setting: Setting) -> bool:
  """Whether a method has a loss in a pre-stage."""
  if method.prepares == 'blocks' and not setting.prepares_blocks:
    return False
  return method.has_pre_stage


def _at_least_float32(tree: Any) -> Any:
  """Under bfloat16 compute the terms are computed in float32."""

  def one(x):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    if isinstance(x, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(x.shape, dtype)
    return x.astype(dtype)

  return jax.tree.map(one, tree)


def _gather(tree: Any, axis_name: str | None) -> Any:
  """The arrays of all replicas, in the order of the global batch."""
  if axis_name is None:
    return tree

  def one(x):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      data = jax.lax.all_gather(jax.random.key_data(x), axis_name, tiled=True)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    return jax.lax.all_gather(x, axis_name, tiled=True)

  return jax.tree.map(one, tree)
