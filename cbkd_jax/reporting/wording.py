"""Numbers as they are written in a report."""

_SPACE = '\N{NO-BREAK SPACE}'


def percent(value: float | None) -> str:
  """Of a fraction, to hundredths; empty for None."""
  return '' if value is None else f'{100 * value:.2f}{_SPACE}%'


def points(value: float, reference: float) -> str:
  """The difference of two fractions in percentage points, with its sign."""
  difference = round(100 * (value - reference), 2)
  sign = '\N{MINUS SIGN}' if difference < 0 else '+' if difference else '±'
  return f'{sign}{abs(difference):.2f}{_SPACE}points'


def against(value: float, reference: float, what: str) -> str:
  """How two fractions compare, in words: '0.56 points below the teacher'."""
  difference = round(100 * (value - reference), 2)
  if not difference:
    return f'level with {what}'
  side = 'above' if difference > 0 else 'below'
  return f'{abs(difference):.2f}{_SPACE}points {side} {what}'


def ratio(teacher: float, student: float) -> str:
  """How many times less the student has: '÷4.9', or more: 'x1.2'.

  Empty where one of them has nothing.
  """
  if not (student and teacher):
    return ''
  if teacher == student:
    return 'same'
  if teacher < student:
    return f'x{student / teacher:.3g}'
  return f'÷{teacher / student:.3g}'


def stage_name(phase: str) -> str:
  """A phase's name in a sentence."""
  return 'the thaw' if phase == 'thaw' else phase.replace('_', ' ')
