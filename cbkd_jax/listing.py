"""What `python -m cbkd_jax.train --list` prints: everything with a name."""

import rich.console
import rich.padding
import rich.text

from cbkd_jax import models
from cbkd_jax.objectives import METHODS, Method
from cbkd_jax.stages import ORDERS


def show(console: rich.console.Console) -> None:
  """Prints models, objectives, data sets and orders."""
  _section(console, 'Models', 'teacher.model')
  _words(console, models.choices())
  _section(console, 'Objectives', 'objective')
  _indented(
    console,
    "Weighted sums: 'ce + 1000*at(power=2) + 0.9*kd'. A bare name alone "
    'stands for its published recipe.',
  )
  for name, method in sorted(METHODS.items()):
    _method(console, name, method)
  _section(console, 'Data sets', 'data.name')
  _words(
    console,
    [
      'digits',
      'tiny_imagenet',
      'any image-classification set that TFDS has prepared (cifar10, ...)',
      'images of your own in data.dir: folder, npz, hf',
    ],
  )
  _section(console, 'Orders', 'order')
  _words(console, list(ORDERS))


def _section(console: rich.console.Console, title: str, field: str) -> None:
  console.print()
  console.print(rich.text.Text.assemble((title, 'bold'), f'  (config.{field})'))


def _indented(
  console: rich.console.Console, text: str, columns: int = 2
) -> None:
  # Text, not markup: recipes may hold brackets.
  console.print(
    rich.padding.Padding(rich.text.Text(text), (0, 0, 0, columns)),
    highlight=False,
  )


def _words(console: rich.console.Console, words: list[str]) -> None:
  _indented(console, ', '.join(words))


def _method(
  console: rich.console.Console, name: str, method: type[Method]
) -> None:
  _indented(console, f'{name}: {method.paper}')
  _indented(console, f'recipe   {method.recipe}', 4)
  options = ', '.join(
    f'{option}={field.default!r}' for option, field in method.options().items()
  )
  if options:
    _indented(console, f'options  {options}', 4)
