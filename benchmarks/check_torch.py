"""Whether the PyTorch stage computes what ours does, weight for weight.

Draws weights and a batch, takes a step here, and has `torch_stage.py --check`
do the same from a file. Compared: the logits of teacher and hybrid in eval
mode, and one step of stage 1 and of plain training without augmentation: the
loss, all weights and batch statistics after it.

  python -m benchmarks.check_torch
"""

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np

from benchmarks import ours
from cbkd_jax import experiment, step

BATCH = 8


def arrays() -> dict[str, np.ndarray]:
  """Weights, a batch, and what we make of them."""
  exp = ours.build(BATCH)
  stage = exp.stages[0]
  teacher, hybrid = ours.draw(exp)
  images, labels, _ = ours.random_split(exp, BATCH)
  augmentation = dataclasses.replace(
    experiment.plan_augmentation(exp.config), pad=0, flip=False
  )
  rows = np.arange(BATCH, dtype=np.int32)[None]
  found = {
    'images': np.asarray(images),
    'labels': np.asarray(labels),
    **ours.flat('teacher', teacher),
    **ours.flat('hybrid', hybrid),
  }
  for name, network, variables in (
    ('teacher_logits', exp.teacher_network, teacher),
    ('hybrid_logits', exp.network(stage), hybrid),
  ):
    forward = step.compiled_forward(network, augmentation, exp.replicas)
    found[name] = np.asarray(forward(variables, images, rows)[0])
  for name, spec, student, its_teacher in (
    ('stage_1', exp.spec(stage, augmentation), hybrid, teacher),
    ('plain', exp.teacher_spec(augmentation), teacher, None),
  ):
    run = step.compiled_train(spec, exp.replicas)
    state = ours.initial_state(exp, spec, student, its_teacher)
    data = step.Resident(images, labels)
    state, metrics = run(state, its_teacher, data, step.Drawn(rows[None]))
    found[f'{name}_loss'] = np.asarray(metrics['loss'][0])
    after = jax.device_get(state.variables)
    found |= ours.flat(f'{name}_after', after)
  return found


def main() -> None:
  with tempfile.TemporaryDirectory() as directory:
    path = Path(directory) / 'arrays.npz'
    np.savez(path, **arrays())
    worker = Path(__file__).with_name('torch_stage.py')
    command = [sys.executable, str(worker), f'--check={path}']
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == '__main__':
  main()
