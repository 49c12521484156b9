"""The benchmark as a picture: what each step reaches of what it could.

Williams, Waterman, Patterson, "Roofline: an insightful visual performance
model for multicore architectures", CACM 52(4), 2009.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

# One colour per row, in the order of the rows.
_COLOURS = matplotlib.colormaps['tab10'].colors


def draw(found: Mapping[str, Any], path: Path) -> None:
  """Draws operations per second over operations per byte, a point per row.

  Args:
    found: what the benchmark found.
    path: a file that ends in .png, .svg or .pdf.
  """
  peak, rows = found['peak'], found['rows']
  points = [
    (row['flops_per_example'] / row['bytes_per_example'], row) for row in rows
  ]
  ridge = peak['flops'] / peak['bytes']
  left = min([ridge, *(x for x, _ in points)]) / 3
  right = max([ridge, *(x for x, _ in points)]) * 3
  figure = Figure(figsize=(7.5, 4.8), layout='constrained')
  axes = figure.subplots()
  axes.plot(
    [left, ridge, right],
    [left * peak['bytes'], peak['flops'], peak['flops']],
    color='black',
    linewidth=1.5,
  )
  axes.annotate(
    f'{peak["flops"] / 1e9:,.0f} GFLOP/s',
    (right, peak['flops']),
    xytext=(-4, 4),
    textcoords='offset points',
    ha='right',
  )
  axes.annotate(
    f'{peak["bytes"] / 1e9:,.0f} GB/s',
    (left, left * peak['bytes']),
    xytext=(24, 2),
    textcoords='offset points',
  )
  several = len({(r['spmd'], r['devices']) for r in rows}) > 1
  for i, (intensity, row) in enumerate(points):
    label = row['name']
    if several:
      label += f', {row["spmd"]} x{row["devices"]}'
    axes.scatter(
      intensity,
      row['flops_per_second'],
      s=45,
      color=_COLOURS[i % len(_COLOURS)],
      marker='osD^v'[i // len(_COLOURS) % 5],
      label=f'{label}: {row["examples_per_second"]:,.0f} examples/s',
      zorder=3,
    )
  axes.set_xscale('log')
  axes.set_yscale('log')
  axes.set_xlabel("operations per byte (XLA's counts)")
  axes.set_ylabel('operations per second')
  axes.set_title(
    f'{found["config"]["teacher"]["model"]}, batch '
    f'{rows[0]["batch_size"]}, {found["config"]["compute_dtype"]}, '
    f'{found["device"]["kind"]} ({peak["source"]} peak)',
    fontsize=10,
  )
  axes.grid(True, which='major', color='0.9')
  axes.legend(loc='lower right', fontsize=8)
  figure.savefig(path, dpi=150)
