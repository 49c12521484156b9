"""Accuracy, agreement and divergence, every example counted once."""

import math

import jax
import numpy as np
from scipy import special

from cbkd_jax import step
from cbkd_jax.batch import Examples
from cbkd_jax.blocks import Network, Variables
from cbkd_jax.data import Split, Streamed
from cbkd_jax.data.augment import Augmentation


def predict(
  network: Network,
  variables: Variables,
  split: Split | Streamed,
  augmentation: Augmentation,
  replicas: step.Replicas,
  batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
  """Eval-mode logits of a whole split, in every process.

  Args:
    network: the network.
    variables: its variables, on the replicas.
    split: the examples, of which each process reads its devices' shares.
    augmentation: holds mean and std; nothing random happens.
    replicas: the devices.
    batch_size: examples per call over all devices, rounded up to fill them.

  Returns:
    Logits, float64 `[examples, classes]`, and labels, int32 `[examples]`, in
    the split's order.
  """
  run = step.compiled_forward(network, augmentation, replicas)
  devices = len(replicas.devices)
  examples = len(split)
  local = max(1, math.ceil(min(batch_size, examples) / devices))
  size = local * devices
  # The last batch is filled up with its last example, dropped below.
  batches = [
    np.minimum(np.arange(start, start + size), examples - 1)
    for start in range(0, examples, size)
  ]
  own = list(replicas.own)
  shares = [batch.reshape(devices, local)[own] for batch in batches]
  logits, labels = [], []
  for share in split.batches(shares):
    shares = replicas.put_shares(Examples(*share))
    out, expected = jax.device_get(run(variables, shares))
    logits.append(out.astype(np.float64))
    labels.append(expected)
  return np.concatenate(logits)[:examples], np.concatenate(labels)[:examples]


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
  """Figures of one network.

  Args:
    logits: `[examples, classes]`.
    labels: `[examples]`.

  Returns:
    'accuracy' and 'top_5_accuracy' (the latter with more than ten classes) as
    fractions, 'cross_entropy' in nats.
  """
  found = {'accuracy': float(np.mean(logits.argmax(-1) == labels))}
  if logits.shape[-1] > 10:
    # Ranks by the number of larger logits: no order among equal ones.
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    found['top_5_accuracy'] = float(np.mean((logits > own).sum(-1) < 5))
  log_p = special.log_softmax(logits, axis=-1)
  picked = np.take_along_axis(log_p, labels[:, None], axis=-1)
  found['cross_entropy'] = float(-picked.mean())
  return found


def comparison(student: np.ndarray, teacher: np.ndarray) -> dict[str, float]:
  """How the student's logits relate to the teacher's.

  Args:
    student: `[examples, classes]`.
    teacher: `[examples, classes]`.

  Returns:
    'agreement', the fraction of equal predictions, and 'kl_to_teacher', the
    mean of KL(teacher || student) in nats.
  """
  log_p = special.log_softmax(student, axis=-1)
  log_q = special.log_softmax(teacher, axis=-1)
  kl = (np.exp(log_q) * (log_q - log_p)).sum(-1)
  return {
    'agreement': float(np.mean(student.argmax(-1) == teacher.argmax(-1))),
    'kl_to_teacher': float(kl.mean()),
  }
