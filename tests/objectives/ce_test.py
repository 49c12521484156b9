"""Cross-entropy, smoothed and of mixed images, against float64 in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cbkd_jax import blocks, objectives
from cbkd_jax.errors import UserError
from cbkd_jax.objectives.ce import CrossEntropy, cross_entropy

pytestmark = pytest.mark.usefixtures('quick_compilation')

RANDOM = np.random.default_rng(1)
LOGITS = RANDOM.normal(scale=3, size=(6, 5))
LABELS, OTHERS = RANDOM.integers(0, 5, (2, 6))


def by_hand(logits, labels, eps):
  """As torch.nn.CrossEntropyLoss(label_smoothing=eps) is documented."""
  total = 0
  for row, label in zip(logits, labels):
    log_p = row - np.log(np.exp(row).sum())
    total += (1 - eps) * -log_p[label] + eps * -log_p.mean()
  return total / len(labels)


def loss(method, mixed=None, logits=LOGITS):
  view = blocks.View(jnp.asarray(logits, jnp.float32), (), (), None)
  return method.loss({}, view, None, labels=jnp.asarray(LABELS), mixed=mixed)[0]


@pytest.mark.parametrize('eps', [0.0, 0.1])
def test_label_smoothing_and_its_gradient(eps):
  method = CrossEntropy(label_smoothing=eps)
  fn = jax.jit(jax.value_and_grad(lambda x: loss(method, logits=x)))
  value, grad = fn(jnp.asarray(LOGITS, jnp.float32))
  assert value == pytest.approx(by_hand(LOGITS, LABELS, eps), rel=1e-6)
  # Softmax minus the smoothed labels.
  p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
  expected = (p - (1 - eps) * np.eye(5)[LABELS] - eps / 5) / 6
  np.testing.assert_allclose(grad, expected, atol=1e-7)


def test_without_smoothing_nothing_is_added():
  plain, off, on = (
    str(jax.make_jaxpr(fn)(LOGITS))
    for fn in (
      lambda x: cross_entropy(x, LABELS),
      lambda x: cross_entropy(x, LABELS, 0.0),
      lambda x: cross_entropy(x, LABELS, 0.1),
    )
  )
  assert plain == off != on


@pytest.mark.parametrize('eps', [0.0, 0.1])
@pytest.mark.parametrize('share', [0.0, 0.3, 1.0])
def test_a_mixed_image_has_two_labels(share, eps):
  mixed = jnp.asarray(OTHERS), jnp.float32(share)
  found = loss(CrossEntropy(label_smoothing=eps), mixed)
  one, other = (by_hand(LOGITS, labels, eps) for labels in (LABELS, OTHERS))
  assert one != pytest.approx(other, rel=1e-4)
  assert found == pytest.approx(share * one + (1 - share) * other, rel=1e-6)


def test_in_an_expression():
  (term,) = objectives.parse('ce(label_smoothing=0.1)').terms
  assert term.method.label_smoothing == 0.1
  (term,) = objectives.parse('ce').terms
  assert term.method.label_smoothing == 0
  for value in -0.1, 1.0, float('nan'):
    with pytest.raises(
      UserError, match=r'^ce.label_smoothing = .*: must be fr'
    ):
      CrossEntropy(label_smoothing=value)
