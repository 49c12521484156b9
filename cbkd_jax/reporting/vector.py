"""From a drawn figure to PNG, and to an SVG that takes a page's colours."""

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure

from cbkd_jax.reporting.style import LIGHT


def settled(figure: Figure) -> Figure:
  """The figure with its layout found, once for all files."""
  figure.draw_without_rendering()
  figure.set_layout_engine(None)
  return figure


def png(figure: Figure) -> bytes:
  """The figure as an image of two pixels per pixel."""
  out = io.BytesIO()
  figure.savefig(out, format='png', dpi=144, facecolor=LIGHT.paper)
  return out.getvalue()


def svg(figure: Figure, key: str, label: str) -> str:
  """The figure as an element of a page.

  Args:
    figure: drawn in the light palette.
    key: of no other figure in the page; begins all its ids.
    label: what a screen reader says; is escaped.

  Returns:
    An `<svg>` without a size of its own, its colours and font CSS variables.
  """
  out = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': key}):
    figure.savefig(out, format='svg', transparent=True)
  text = out.getvalue()
  text = text[text.index('<svg') :]
  text = re.sub(r'<metadata>.*?</metadata>\s*', '', text, flags=re.DOTALL)
  text = re.sub(r'<style.*?</style>\s*', '', text, flags=re.DOTALL)
  text = re.sub(r'<!--.*?-->\s*', '', text, flags=re.DOTALL)
  text = _with_own_ids(text, key)
  for role, color in LIGHT._asdict().items():
    text = text.replace(color, f'var(--{role})')
  text = re.sub(r"'DejaVu Sans'[^;\"]*", 'var(--font)', text)
  head, rest = text.split('>', 1)
  (box,) = re.findall(r'viewBox="[^"]*"', head)
  label = html.escape(label)
  names = 'xmlns="http://www.w3.org/2000/svg"'
  names += ' xmlns:xlink="http://www.w3.org/1999/xlink"'
  return f'<svg {names} {box} role="img" aria-label="{label}">{rest.rstrip()}'


def _with_own_ids(text: str, key: str) -> str:
  """Ids that nothing refers to go; others begin with the key."""
  used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))

  def new_id(match: re.Match[str]) -> str:
    return f' id="{key}-{match[1]}"' if match[1] in used else ''

  text = re.sub(r' id="([^"]*)"', new_id, text)
  return re.sub(r'(url\(#|href="#)', rf'\g<1>{key}-', text)
