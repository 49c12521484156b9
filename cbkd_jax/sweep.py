"""One student per target, and which of them no other one beats."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.console

from cbkd_jax import budget, config, experiment, sweep_plot, workdir
from cbkd_jax import shared_teacher as shared
from cbkd_jax.compare_tables import mean_std
from cbkd_jax.errors import NonFiniteLossError, UserError
from cbkd_jax.summary import new_table


def sweep(
  values: Mapping[str, Any],
  directory: Path,
  *,
  targets: Sequence[str],
  seeds: int,
  console: rich.console.Console,
  interrupted: Callable[[], bool] = lambda: False,
  command: str | None = None,
) -> dict[str, Any]:
  """Runs every target with every seed, and writes table and plot.

  Args:
    values: the config, as nested plain values; its `compression.target` is
      replaced, its `seed` is the first one.
    directory: where the runs go, as `seed_S/TARGET`, and pareto.json and
      pareto.png.
    targets: as in `compression.target`. All seeds have a target's student in
      common.
    seeds: how many, consecutive.
    console: where to show how it goes.
    interrupted: whether to save and stop.
    command: the command line, which the workdir of each run keeps.

  Returns:
    What pareto.json holds: 'points', one per target, and 'teacher'.

  Raises:
    UserError: wrong input, found before anything is run.
    NonFiniteLossError: a run diverged; the others were run all the same.
  """
  _check(targets, seeds)
  runs = [
    run for target in targets for run in _runs(values, directory, target, seeds)
  ]
  students = {}
  for run in runs:
    config.check(run.values)
    target = run.values['compression']['target']
    if target not in students:
      students[target] = shared.find(directory, run.values)
    experiment.build(run.values, found=students[target])
    workdir.check_config(run.directory, run.values, config.defaults())
  diverged, result = [], None
  for number, run in enumerate(runs, start=1):
    console.rule(f'{number} of {len(runs)}: {run.title}')
    found = students[run.values['compression']['target']]
    try:
      found = shared.find(directory, run.values, found)
      shared.run(run, found, console, interrupted, command)
    except NonFiniteLossError as error:
      diverged.append(f'{run.title}: {error}')
      console.print(diverged[-1], highlight=False)
    if result := _collect(runs):
      workdir.write_json(directory / 'pareto.json', result)
  if result:
    title = f'{values["teacher"]["model"]} on {values["data"]["name"]}'
    show(result, title, console)
    sweep_plot.write(result, title, directory / 'pareto.png')
    for name in ('pareto.json', 'pareto.png'):
      console.print(f'{directory / name}', highlight=False, markup=False)
  if diverged:
    raise NonFiniteLossError('; '.join(diverged))
  return result


def _check(targets: Sequence[str], seeds: int) -> None:
  if seeds < 1:
    raise UserError(f'--seeds={seeds}: must be at least 1')
  if not targets:
    raise UserError('--targets: must name at least one, e.g. params:0.1')
  known: dict[budget.Target, str] = {}
  for target in targets:
    try:
      parsed = budget.parse(target)
    except UserError as error:
      raise UserError(f'--targets: {error}') from None
    if parsed in known:
      raise UserError(
        f'--targets: {known[parsed]!r} and {target!r} are the same'
      )
    known[parsed] = target


def _runs(
  values: Mapping[str, Any], directory: Path, target: str, seeds: int
) -> list[shared.RunPlan]:
  """A target's runs, one per seed."""
  compression = {**values['compression'], 'target': target}
  name = str(budget.parse(target)).replace(':', '_')
  runs = []
  for seed in range(values['seed'], values['seed'] + seeds):
    parent = directory / f'seed_{seed}'
    own = {**values, 'seed': seed, 'compression': compression}
    title = f'{target}, seed {seed}'
    runs.append(shared.RunPlan(own, parent / name, parent, title))
  return runs


def _collect(runs: Sequence[shared.RunPlan]) -> dict[str, Any] | None:
  """All finished runs by target; None where there is none."""
  by_target: dict[str, list[dict[str, Any]]] = {}
  teachers = {}
  for run in runs:
    path = run.directory / 'summary.json'
    if path.exists():
      found = workdir.read_json(path)
      target = run.values['compression']['target']
      by_target.setdefault(target, []).append(found)
      teachers[found['seed']] = found['teacher']
  if not teachers:
    return None
  points = [
    {
      'target': target,
      'keep': found[0]['compression']['keep'],
      **_figures([summary['student'] for summary in found]),
      'agreement': statistics.mean(s['student']['agreement'] for s in found),
      'seeds': [summary['seed'] for summary in found],
    }
    for target, found in by_target.items()
  ]
  for point, is_optimal in zip(points, optimal(points)):
    point['pareto_optimal'] = is_optimal
  return {'teacher': _figures(list(teachers.values())), 'points': points}


def _figures(networks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Of one network in several runs."""
  accuracies = [network['accuracy'] for network in networks]
  return {
    'params': networks[0]['params'],
    'flops_per_example': networks[0]['flops_per_example'],
    'accuracy': statistics.mean(accuracies),
    'accuracies': accuracies,
  }


def optimal(points: Sequence[Mapping[str, Any]]) -> list[bool]:
  """Whether no other point has fewer parameters and more accuracy.

  Nor as many of one, and more or fewer of the other. Of equal points all are.
  """

  def beats(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    no_worse = (
      one['params'] <= other['params'] and one['accuracy'] >= other['accuracy']
    )
    return no_worse and (
      one['params'] < other['params'] or one['accuracy'] > other['accuracy']
    )

  return [not any(beats(other, point) for other in points) for point in points]


def show(
  result: Mapping[str, Any], title: str, console: rich.console.Console
) -> None:
  """Prints the points as a table, the teacher first."""
  seeds = max(len(point['accuracies']) for point in result['points'])
  table = new_table(f'{title}, {seeds} seeds' if seeds > 1 else title)
  table.add_column('', no_wrap=True)
  table.add_column('target', no_wrap=True)
  table.add_column('keep')
  for header in ('params', 'MFLOPs', 'accuracy', 'gap', 'agreement'):
    table.add_column(header, justify='right', no_wrap=True)
  teacher = result['teacher']
  for point in (teacher, *result['points']):
    cells = ['', 'teacher', '', *_cells(point), '', '']
    if point is not teacher:
      gap = 100 * (point['accuracy'] - teacher['accuracy'])
      keep = ' '.join(f'{ratio:.3g}' for ratio in point['keep'])
      mark = '*' if point['pareto_optimal'] else ''
      cells = [mark, point['target'], keep, *_cells(point)]
      cells += [f'{gap:+.2f}', f'{point["agreement"]:.4f}']
    table.add_row(*cells)
  console.print(table)
  console.print(
    '*: no smaller student is as accurate. gap: to the teacher, in percentage '
    'points. agreement: with the teacher.',
    highlight=False,
    soft_wrap=True,
  )


def _cells(figures: Mapping[str, Any]) -> tuple[str, str, str]:
  return (
    f'{figures["params"]:,}',
    f'{figures["flops_per_example"] / 1e6:,.2f}',
    mean_std(figures['accuracies']),
  )
