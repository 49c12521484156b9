"""Numbers that published PyTorch code gave, to be compared with ours.

`tests/golden/` holds a few of them, so that every clone checks some. The full
set is a folder next to the repository and need not be there; a test that asks
for an absent file is skipped. Arrays are in torch's layout, [N, C, H, W].

`tests/golden/resnet8__train_step.npz` is one training step of RepDistiller's
resnet8 (github.com/HobbitLong/RepDistiller at b84f547, torch 2.13 on a CPU):
the full set's file less its feature maps and BatchNorm's step counters.
`tests/golden/losses/` holds whole files, one or two of almost every method's
(`meta_source` in each says which repository and which class).
"""

import pathlib

import numpy as np
import pytest

_TESTS = pathlib.Path(__file__).resolve().parent
_IN_CLONE = _TESTS / 'golden'
_FULL_SET = _TESTS.parent.parent / 'shared' / 'golden'


def load(name: str) -> dict[str, np.ndarray]:
  """The arrays of a file such as 'models/resnet8x4' (no suffix) by name.

  The clone's own copy, which may be reduced, goes first.
  """
  candidates = (
    _IN_CLONE / f'{name}.npz',
    _IN_CLONE / f'{pathlib.PurePath(name).name}.npz',
    _FULL_SET / f'{name}.npz',
  )
  for path in candidates:
    if path.exists():
      with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)
  pytest.skip(
    f'golden file {name}.npz is neither in tests/golden nor in {_FULL_SET}'
  )


def to_nhwc(x: np.ndarray) -> np.ndarray:
  """Moves the channels of `[N, C, H, W]` last; leaves vectors as they are."""
  return x.transpose(0, 2, 3, 1) if x.ndim == 4 else x
