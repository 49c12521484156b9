"""Each of JAX's operations in ONNX, against JAX itself."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cbkd_jax.errors import UserError
from cbkd_jax.formats import onnx_trace

onnx = pytest.importorskip('onnx', reason="needs onnx, the extra 'onnx'")
pytest.importorskip('onnxruntime', reason="needs it, the extra 'onnx'")
format_ = pytest.importorskip('cbkd_jax.formats.onnx')

pytestmark = pytest.mark.usefixtures('quick_compilation')

IMAGE = (6, 5, 4)
RNG = np.random.default_rng(0)


def array(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def conv(x, kernel, stride=1, padding=1, groups=1, dilation=1):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride,) * 2,
    ((padding - 1, padding + 1), (padding, padding)),
    rhs_dilation=(dilation,) * 2,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=groups,
  )


def shuffle(x):
  split = x.reshape(*x.shape[:3], 2, x.shape[3] // 2)
  return split.swapaxes(3, 4).reshape(x.shape)


def layer_norm(x, scale, bias, axis):
  centred = x - x.mean(axis, keepdims=True)
  variance = jnp.square(centred).mean(axis, keepdims=True)
  return centred * (jax.lax.rsqrt(variance + 1e-3) * scale) + bias


def tokens(x):
  return x.reshape(x.shape[0], -1, x.shape[-1])


def attention(x, kernel):
  heads = (tokens(x) @ kernel).reshape(x.shape[0], -1, 3, 2, 4)
  q, k, v = (heads[:, :, i] for i in range(3))
  weights = nn.softmax(jnp.einsum('bqhd,bkhd->bhqk', q, k))
  return jnp.einsum('bhqk,bkhd->bqhd', weights, v).reshape(x.shape[0], -1, 8)


def classified(x, token):
  token = jnp.broadcast_to(token, (x.shape[0], 1, x.shape[-1]))
  return jnp.concatenate([token, tokens(x)], 1)[:, 0]


def twice(x, kernel, bias):
  y = conv(x, kernel)
  return (y + bias) * y


def per_row(x, kernel, bias):
  return conv(x, kernel) + bias


KERNEL, VECTOR, MATRIX = array(3, 3, 4, 6), array(1, 1, 1, 6), array(4, 6)
SCALE, SHIFT = array(1, 1, 1, 4), array(1, 1, 1, 4)

# name: (function, its arrays, the nodes)
CASES = {
  'relu': (lambda x: nn.relu(x), (), 'Relu'),
  'relu6': (lambda x: nn.relu6(4 * x), (), 'Mul Clip'),
  'relu, used twice': (
    lambda x: nn.relu(x) * jnp.minimum(nn.relu(x), 1),
    (),
    'Relu Min Mul',
  ),
  'minimum of what is no relu': (
    lambda x: jnp.minimum(jnp.maximum(x, 0.5), 1),
    (),
    'Max Min',
  ),
  'gelu': (
    lambda x: nn.gelu(x, approximate=False),
    (),
    'Mul Mul Erf Add Mul',
  ),
  'gelu by tanh': (nn.gelu, (), None),
  'silu': (nn.silu, (), 'Sigmoid Mul'),
  'leaky relu': (nn.leaky_relu, (), 'GreaterOrEqual Mul Where'),
  'choice': (
    lambda x: jnp.where(x > 0.5, 2 * x, x),
    (),
    'Greater Mul Where',
  ),
  'powers': (
    lambda x: x**2 + x**3 + (1 + jnp.abs(x)) ** 0.3 - jnp.exp(-x),
    (),
    None,
  ),
  'roots': (
    lambda x: jnp.log(1 + jnp.sqrt(x * x)) / jnp.tanh(2 + nn.sigmoid(x)),
    (),
    None,
  ),
  'affine': (lambda x, a, b: x * a + b, (SCALE, SHIFT), 'Mul Add'),
  'convolution': (
    lambda x, k, b: conv(x, k, 2) + b,
    (KERNEL, VECTOR),
    'Transpose Conv Transpose',
  ),
  'padded and dilated convolution': (
    lambda x, k: conv(x, k, padding=2, dilation=2),
    (KERNEL,),
    'Transpose Conv Transpose',
  ),
  'grouped convolution': (
    lambda x, k: conv(x, k, groups=2),
    (array(3, 3, 2, 6),),
    'Transpose Conv Transpose',
  ),
  'two convolutions': (
    lambda x, k, m: conv(nn.relu(conv(x, k)), m) + x,
    (KERNEL, array(3, 3, 6, 4)),
    'Transpose Conv Relu Conv Add Transpose',
  ),
  'bias, and the output without it': (
    twice,
    (KERNEL, VECTOR),
    'Transpose Conv Add Mul Transpose',
  ),
  'what is added per row': (
    per_row,
    (array(3, 3, 4, 6), array(1, 6, 1, 1)),
    'Transpose Conv Add Transpose',
  ),
  'what is added to one channel': (
    per_row,
    (array(3, 3, 4, 1), VECTOR),
    'Transpose Conv Add Transpose',
  ),
  'max pooling': (
    lambda x: nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (0, 1))),
    (),
    'Transpose MaxPool Transpose',
  ),
  'average pooling': (
    lambda x: nn.avg_pool(x, (3, 2), (2, 1), ((1, 1), (0, 1))),
    (),
    'Transpose AveragePool Transpose',
  ),
  'sum over windows': (
    lambda x: 2 * nn.pooling.pool(x, 0.0, jax.lax.add, (2, 2), (2, 1), 'VALID'),
    (),
    'Transpose AveragePool Mul Mul Transpose',
  ),
  'global pooling': (lambda x: x.mean((1, 2)), (), 'ReduceMean'),
  'a sum, and its mean': (
    lambda x: x.sum((1, 2)) * x.mean((1, 2)),
    (),
    'ReduceSum ReduceMean Mul',
  ),
  'a sum, divided by something else': (
    lambda x: x.sum((1, 2)) / 7,
    (),
    'ReduceSum Div',
  ),
  'extrema': (
    lambda x: x.max(1) - x.min(1, keepdims=True)[:, 0],
    (),
    None,
  ),
  'channel shuffle': (
    lambda x, k: shuffle(conv(x, k)),
    (KERNEL,),
    'Transpose Conv Reshape Transpose Reshape Transpose',
  ),
  'parts of channels': (
    lambda x: jnp.concatenate(jnp.split(x, 2, axis=-1)[::-1], -1),
    (),
    'Slice Slice Concat',
  ),
  'steps': (lambda x: jax.lax.slice_in_dim(x, 1, 6, 2, axis=1), (), 'Slice'),
  'one row': (lambda x: x[:, 1], (), 'Gather'),
  'padding': (
    lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (3, 0))),
    (),
    'Pad',
  ),
  'axes': (
    lambda x: jnp.squeeze(x[:, None].transpose(0, 4, 1, 3, 2), 2) * 2,
    (),
    'Mul Transpose',
  ),
  'tokens': (tokens, (), 'Reshape'),
  'class token': (classified, (array(1, 1, 4),), None),
  'repeated constant': (
    lambda x, a: jnp.broadcast_to(a, (x.shape[0], 3)),
    (array(1, 3),),
    'Shape Concat Expand',
  ),
  'constant, computed with and repeated': (
    lambda x, a: jnp.exp(jnp.broadcast_to(a, (x.shape[0], 3))),
    (array(1, 3),),
    'Exp Unsqueeze Shape Concat Expand',
  ),
  'two of an axis, one of another': (
    lambda x: jnp.squeeze(
      jax.lax.slice_in_dim(jax.lax.slice_in_dim(x, 0, 1, axis=1), 2, 4, axis=3),
      1,
    ),
    (),
    'Slice Slice Squeeze',
  ),
  'dense': (
    lambda x, k, b: x.mean((1, 2)) @ k + b,
    (MATRIX, array(1, 6)),
    'ReduceMean Gemm',
  ),
  'dense, transposed': (
    lambda x, k: jnp.einsum('bhwc,kc->bhwk', x, k),
    (MATRIX.T.copy(),),
    'MatMul',
  ),
  'dense among images': (
    lambda x, k, m, b: conv(x, k) @ m + b,
    (KERNEL, array(6, 3), array(1, 1, 1, 3)),
    'Transpose Conv Conv Transpose',
  ),
  'layer norm': (
    lambda x, a, b: layer_norm(tokens(x), a, b, -1),
    (array(1, 1, 4), array(1, 1, 4)),
    'Reshape LayerNormalization',
  ),
  'layer norm among images': (
    lambda x, k, a, b: layer_norm(conv(x, k), a, b, -1),
    (KERNEL, VECTOR, VECTOR),
    'Transpose Conv ReduceMean Sub Mul ReduceMean Add Sqrt Reciprocal Mul Mul '
    'Add Transpose',
  ),
  'norm over another axis': (
    lambda x, a, b: layer_norm(tokens(x), a, b, 1),
    (array(1, 1, 4), array(1, 1, 4)),
    None,
  ),
  'softmax': (nn.softmax, (), 'Softmax'),
  'softmax over rows': (lambda x: nn.softmax(x, 1), (), 'Softmax'),
  'attention': (
    attention,
    (array(4, 24),),
    'Reshape MatMul Reshape Gather Gather Gather Transpose Transpose MatMul '
    'Softmax Transpose MatMul Transpose Reshape',
  ),
  'product with one row': (
    lambda x: jnp.einsum('bqd,bkd->bqk', tokens(x)[:, :1], tokens(x)),
    (),
    None,
  ),
  'wrapped': (
    lambda x: jax.lax.stop_gradient(
      jax.checkpoint(jnp.tanh)(jax.lax.optimization_barrier(x))
    ),
    (),
    'Tanh',
  ),
  'what is not used': (lambda x: (jnp.sort(x, 1), 2 * x)[1], (), 'Mul'),
}


def exported(function, arrays, dtype='float32'):
  arrays = {f'array_{i}': a for i, a in enumerate(arrays)}
  graph, shape = onnx_trace.trace(
    lambda arrays, x: function(x, *arrays.values()), arrays, IMAGE, dtype
  )
  model = format_.model(graph, IMAGE, dtype, shape[1:])
  onnx.checker.check_model(model, full_check=True)
  return graph, model


@pytest.mark.parametrize('name', CASES)
def test_gives_what_jax_gives(name, tmp_path):
  function, arrays, nodes = CASES[name]
  graph, model = exported(function, arrays)
  found = Counter(node.op for node in graph.nodes)
  if nodes is not None:
    assert found == Counter(nodes.split())
  onnx.save(model, tmp_path / 'x.onnx')
  run = format_.load(tmp_path / 'x.onnx', {})
  for batch in (1, 3):
    x = array(batch, *IMAGE)
    expected = np.asarray(function(x, *arrays))
    np.testing.assert_allclose(run(x), expected, rtol=2e-5, atol=2e-6)


def test_an_unknown_operation_is_named():
  with pytest.raises(UserError, match=r"'onnx' does not know .* 'sort' of JAX"):
    exported(lambda x: jnp.sort(x, 1), ())
  # A loop is not its body, run once.
  with pytest.raises(UserError, match=r"'onnx' does not know .* 'scan' of JAX"):
    exported(
      lambda x: jax.lax.scan(lambda c, _: (2 * c, None), x, length=3)[0], ()
    )


@pytest.mark.parametrize(
  ('function', 'reason'),
  [
    (
      lambda x: jax.lax.conv_transpose(x, KERNEL, (2, 2), 'SAME'),
      'transposed convolution',
    ),
    (lambda x: jnp.tensordot(x, x[:1], ((1, 2), (1, 2))), 'several axes'),
  ],
)
def test_what_can_not_be_said_is_refused(function, reason):
  with pytest.raises(UserError, match=reason):
    exported(function, ())


def test_equal_arrays_are_in_the_file_once():
  same = array(1, 1, 1, 4)
  graph, _ = exported(lambda x, a, b: (x + a) * b, (same, same.copy()))
  assert [c.shape for c in graph.constants.values()] == [(4,)]


def test_constants_are_named_by_their_place():
  graph, _ = onnx_trace.trace(
    lambda tree, x: conv(x, tree['params']['block']['conv']['kernel']),
    {'params': {'block': {'conv': {'kernel': KERNEL}}}},
    IMAGE,
    'float32',
  )
  assert 'block/conv/kernel' in graph.constants
  np.testing.assert_array_equal(
    graph.constants['block/conv/kernel'], KERNEL.transpose(3, 2, 0, 1)
  )
  assert 'block/conv/Conv' in [node.output for node in graph.nodes]
