"""The objective's one expression, parsed and never evaluated.

`'0.1*ce + 0.9*kd(temperature=4)'` becomes terms of (weight, method, options).
"""

import ast
import dataclasses
from typing import Any

from cbkd_jax.errors import UserError, nearest
from cbkd_jax.objectives.catalog import METHODS
from cbkd_jax.objectives.method import Method
from cbkd_jax.objectives.objective import Objective, Term


def parse(expression: str, field: str = 'objective') -> Objective:
  """Parses an objective expression.

  Args:
    expression: terms joined by `+`, each `weight*method(option=value, ...)`
      with weight and options optional; or one bare name, which stands for
      the method's published recipe.
    field: the config field it comes from, for messages.

  Returns:
    The objective.

  Raises:
    UserError: malformed expression, unknown method or option, value out of
      range.
  """
  prefix = f'{field} = {expression!r}'
  try:
    tree = ast.parse(expression.strip(), mode='eval').body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    raise UserError(
      f"{prefix}: not an objective; write '0.1*ce + 0.9*kd(temperature=4)'"
    ) from None
  try:
    if isinstance(tree, ast.Name):
      recipe = _method(tree, []).recipe
      tree = ast.parse(recipe, mode='eval').body
    terms = []
    for node in _summands(tree):
      weight, method_node = _factors(node)
      keywords = getattr(method_node, 'keywords', [])
      method = _method(method_node, keywords)
      name = _name(method_node)
      count = sum(_base(t.key) == name for t in terms)
      key = f'{name}_{count + 1}' if count else name
      terms.append(Term(weight, key, method))
    predictors = [term.key for term in terms if term.method.predicts]
    if len(predictors) > 1:
      raise UserError(
        f'{" and ".join(predictors)} each give the student a head; one can'
      )
    return Objective(tuple(terms))
  except (UserError, RecursionError, OverflowError) as error:
    raise UserError(f'{prefix}: {error}') from None


def split(text: str) -> list[str]:
  """Expressions separated by commas, except those within parentheses."""
  found, depth = [''], 0
  for character in text:
    depth += (character == '(') - (character == ')')
    if character == ',' and not depth:
      found.append('')
    else:
      found[-1] += character
  return [part.strip() for part in found if part.strip()]


def _base(key: str) -> str:
  """A term's method name: its key without the counter of repeated terms."""
  name, _, counter = key.rpartition('_')
  return name if counter.isdigit() and name in METHODS else key


def _summands(node: ast.expr) -> list[ast.expr]:
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
    return _summands(node.left) + _summands(node.right)
  return [node]


def _factors(node: ast.expr) -> tuple[float, ast.expr]:
  """A product's weight and the one factor that is a method."""
  if isinstance(node, ast.Name | ast.Call):
    return 1.0, node
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
    for numbers, other in (node.left, node.right), (node.right, node.left):
      weight = _number(numbers)
      if weight is not None:
        inner, method = _factors(other)
        weight *= inner
        if not 0 <= weight < float('inf'):
          raise UserError(f'weight {weight} is out of range: 0 or more, finite')
        return weight, method
  raise UserError(
    f"'{ast.unparse(node)}' is not a term; a term is "
    "weight*method(option=value), joined by '+'"
  )


def _number(node: ast.expr) -> float | None:
  """The value of a number or a product of numbers, else None."""
  if isinstance(node, ast.Constant) and type(node.value) in (int, float):
    return float(node.value)
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    value = _number(node.operand)
    return None if value is None else -value
  if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
    left, right = _number(node.left), _number(node.right)
    return None if left is None or right is None else left * right
  return None


def _name(node: ast.expr) -> str:
  func = node.func if isinstance(node, ast.Call) else node
  if not isinstance(func, ast.Name):
    raise UserError(f"'{ast.unparse(func)}' is not a method's name")
  return func.id


def _method(node: ast.expr, keywords: list[ast.keyword]) -> Method:
  """The method with its options, checked."""
  name = _name(node)
  if name not in METHODS:
    raise UserError(
      f"method '{name}' is not known{nearest(name, METHODS)}; "
      f'known: {", ".join(sorted(METHODS))}'
    )
  if isinstance(node, ast.Call) and node.args:
    raise UserError(f'{name}: options are named, e.g. {_example(name)}')
  known = METHODS[name].options()
  options = {}
  for keyword in keywords:
    if keyword.arg not in known:
      raise UserError(
        f"{name}: option '{keyword.arg}' is not known"
        f'{nearest(str(keyword.arg), known)}; '
        f'known: {", ".join(known) or "none"}'
      )
    if keyword.arg in options:
      raise UserError(f"{name}: option '{keyword.arg}' is given twice")
    try:
      value = ast.literal_eval(keyword.value)
    except (ValueError, TypeError):
      raise UserError(
        f'{name}.{keyword.arg} = {ast.unparse(keyword.value)}: must be a '
        'plain value'
      ) from None
    options[keyword.arg] = _typed(name, known[keyword.arg], value)
  return METHODS[name](**options)


def _typed(name: str, field: dataclasses.Field, value: Any) -> Any:
  """`value` as the option's type; ints are fine where floats are meant."""
  if field.type is float and type(value) is int:
    value = float(value)
  if isinstance(field.type, type) and type(value) is not field.type:
    raise UserError(
      f'{name}.{field.name} = {value!r}: must be of type {field.type.__name__}'
    )
  return value


def _example(name: str) -> str:
  options = METHODS[name].options()
  inside = ', '.join(f'{key}={f.default!r}' for key, f in options.items())
  return f'{name}({inside})'
