"""How far a run is, and what it warned of, in words."""

from cbkd_jax.reporting.section import Section


def progress(section: Section, name: str) -> str:
  """How far a phase is that is not done, by its last row."""
  steps = [r['step'] for r in section.record.metrics if r['stage'] == name]
  if not steps:
    return 'not begun'
  planned = section.plan.steps.get(name) if section.plan else None
  return f'at {max(steps):,}' + (f' of {planned:,}' if planned else '')


def left(section: Section) -> list[str]:
  """What an unfinished run lacks."""
  record, plan = section.record, section.plan
  if record.finished:
    return []
  if plan is None:
    return [f'Not finished. Done: {", ".join(record.done) or "nothing"}.']
  names = list(plan.steps)
  left = [name for name in ('teacher', *names) if name not in record.done]
  if not left:
    return ['Not finished: every stage is done, but there is no summary yet.']
  now, *later = left
  said = f'Not finished: {now}'
  if now in names:
    said += f' ({names.index(now) + 1} of {len(names)})'
  how_far = progress(section, now)
  said += f' {how_far}' if how_far == 'not begun' else f' is {how_far} steps'
  if later:
    said += f'; then {", ".join(later)}'
  done = ', '.join(record.done)
  return [f'{said}. Done: {done or "nothing"}.']


def warnings(section: Section) -> list[str]:
  """What the phases warned of, each naming itself."""
  return [
    phase['warning'] for phase in section.record.phases if phase.get('warning')
  ]
