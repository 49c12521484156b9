"""State dicts in files: all kinds that are read, all that are refused."""

import argparse
import json
import pickle
import struct
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from cbkd_jax.errors import UserError
from cbkd_jax.weights import files

STATE = {
  'conv.weight': np.arange(54, dtype=np.float32).reshape(2, 3, 3, 3),
  'bn.running_var': np.float32([0.5, 2]),
  'bn.num_batches_tracked': np.int64(7),
}


@pytest.fixture
def torch():
  return pytest.importorskip('torch', reason='needs torch, an extra')


@pytest.fixture
def state(torch):
  """`STATE` as tensors."""
  return {k: torch.from_numpy(np.array(v)) for k, v in STATE.items()}


def assert_is_state(found):
  assert list(found) == list(STATE)
  for name, value in STATE.items():
    assert found[name].dtype == value.dtype
    np.testing.assert_array_equal(found[name], value)


def refusal(path):
  with pytest.raises(UserError) as error:
    files.read(path)
  message = str(error.value)
  assert message.startswith(f'{path}: ')
  assert '\n' not in message
  return message.removeprefix(f'{path}: ')


def test_safetensors_are_read_and_written(tmp_path):
  path = tmp_path / 'a.safetensors'
  files.write(path, STATE)
  (found,) = files.read(path).values()
  assert_is_state({name: found[name] for name in STATE})
  assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']
  # The first bytes tell, not the name.
  path = path.rename(tmp_path / 'a.pth')
  assert list(files.read(path)['']) == list(found)


def test_a_transposed_array_is_written_as_it_looks(tmp_path):
  array = np.arange(6, dtype=np.float32).reshape(2, 3).T
  files.write(tmp_path / 'a.safetensors', {'a': array})
  np.testing.assert_array_equal(
    files.read(tmp_path / 'a.safetensors')['']['a'], [[0, 3], [1, 4], [2, 5]]
  )


def test_half_precision_in_safetensors(tmp_path):
  path = tmp_path / 'a.safetensors'
  # 1.5 in both; the bytes are written by hand, and read as what they mean.
  header = json.dumps(
    {
      'b': {'dtype': 'BF16', 'shape': [1], 'data_offsets': [0, 2]},
      'h': {'dtype': 'F16', 'shape': [1], 'data_offsets': [2, 4]},
    }
  ).encode()
  path.write_bytes(
    struct.pack('<Q', len(header)) + header + b'\xc0\x3f' + b'\x00\x3e'
  )
  found = files.read(path)['']
  assert {k: (v.dtype.name, float(v[0])) for k, v in found.items()} == {
    'b': ('bfloat16', 1.5),
    'h': ('float16', 1.5),
  }


@pytest.mark.parametrize(
  ('wrappers', 'expected'),
  [
    (['module.'], ['a.b', 'c']),
    (['module.', '_orig_mod.'], ['a.b', 'c']),
    (['model.module.'], ['a.b', 'c']),
    (['other.'], ['other.a.b', 'other.c']),
  ],
)
def test_what_wrappers_put_in_front_is_taken_away(wrappers, expected):
  names = ['a.b', 'c']
  for wrapper in wrappers:
    names = [wrapper + name for name in names]
  assert list(files.without_prefix(dict.fromkeys(names))) == expected


def test_a_prefix_of_some_names_stays():
  names = ['module.a', 'b']
  assert list(files.without_prefix(dict.fromkeys(names))) == names


def test_what_is_no_checkpoint(tmp_path):
  path = tmp_path / 'a.pth'
  assert refusal(path) == 'No such file or directory'
  path.write_text('weights, honestly')
  assert 'neither a state dict of PyTorch nor a safetensors' in refusal(path)
  path.write_bytes(b'')
  assert 'neither a state dict of PyTorch nor a safetensors' in refusal(path)
  assert refusal(tmp_path) == 'Is a directory'


def test_safetensors_that_are_none(tmp_path):
  path = tmp_path / 'a.safetensors'
  files.write(path, STATE)
  whole = path.read_bytes()
  for size in (4, 100, len(whole) - 1):
    path.write_bytes(whole[:size])
    assert 'cannot be read as a safetensors file, is it' in refusal(path)
  save_file({}, path)
  assert refusal(path) == 'holds no tensors'


def test_8_bit_floats_are_refused(tmp_path):
  path = tmp_path / 'a.safetensors'
  files.write(path, {'a': np.ones(3, jnp.float8_e4m3fn)})
  assert 'float8_e4m3fn' in refusal(path)


@pytest.mark.parametrize('new', [True, False], ids=['zip', 'old'])
def test_a_pth_of_either_format(tmp_path, torch, state, new):
  path = tmp_path / 'a.pth'
  torch.save(state, path, _use_new_zipfile_serialization=new)
  found = files.read(path)
  assert list(found) == ['']
  assert_is_state(found[''])
  whole = path.read_bytes()
  for size in (10, len(whole) // 2, len(whole) - 1):
    path.write_bytes(whole[:size])
    assert 'cannot be read as a state dict of PyTorch, is it' in refusal(path)


def test_the_state_dict_among_other_entries(tmp_path, torch, state):
  path = tmp_path / 'a.pth'
  wrapped = {f'module.{name}': value for name, value in state.items()}
  torch.save(
    {
      'epoch': 240,
      'accuracy': torch.tensor(79.4),
      'net': wrapped,
      'opt': argparse.Namespace(model='resnet32x4', lr=0.1),
      'optimizer': {
        'state': {0: {'momentum_buffer': torch.ones(2)}},
        'param_groups': [{'lr': 0.1, 'params': [0]}],
      },
    },
    path,
  )
  found = files.read(path)
  assert list(found) == ['net']
  assert_is_state(found['net'])
  torch.save({'a': {'model': state}, 'model_ema': wrapped}, path)
  found = files.read(path)
  assert list(found) == ['a.model', 'model_ema']
  assert_is_state(found['a.model'])
  assert_is_state(found['model_ema'])


def test_types_of_a_pth(tmp_path, torch):
  path = tmp_path / 'a.pth'
  values = torch.tensor([1.5, -3e-5])
  torch.save(
    {
      'b': values.bfloat16(),
      'h': values.half(),
      'd': torch.nn.Parameter(values.double()),
    },
    path,
  )
  found = files.read(path)['']
  assert {k: v.dtype.name for k, v in found.items()} == {
    'b': 'bfloat16',
    'h': 'float16',
    'd': 'float64',
  }
  for name, rounding in (('b', 2**-8), ('h', 2**-10), ('d', 0)):
    np.testing.assert_allclose(
      found[name].astype(np.float64), values.double(), rtol=rounding
    )
  torch.save({'a': torch.eye(3).to_sparse()}, path)
  assert refusal(path).startswith("a: can't convert Sparse layout tensor")


def test_a_pth_without_state_dict(tmp_path, torch):
  path = tmp_path / 'a.pth'
  for value, message in (
    ({}, 'holds no state dict, but a dict of nothing'),
    ([torch.ones(2)], 'holds no state dict, but a list'),
    (
      {'epoch': 3, 'model': {}},
      'holds no state dict, but a dict of epoch, model',
    ),
  ):
    torch.save(value, path)
    assert refusal(path) == message


class Malicious:
  """Creates a file when it is unpickled by a reader that runs programs."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, 'w')


@pytest.mark.parametrize('kind', ['zip', 'old', 'pickle'])
def test_nothing_in_a_pth_is_run(tmp_path, torch, state, kind):
  path, owned = tmp_path / 'a.pth', tmp_path / 'owned'
  if kind == 'pickle':
    path.write_bytes(pickle.dumps(Malicious(owned), protocol=2))
  else:
    value = {'model': state, 'opt': Malicious(owned)}
    torch.save(value, path, _use_new_zipfile_serialization=kind == 'zip')
  assert 'holds more than weights, and nothing of it was run' in refusal(path)
  assert not owned.exists()
  # It would have: the test can tell.
  pickle.loads(pickle.dumps(Malicious(owned))).close()
  assert owned.exists()


def test_objects_of_programs_are_refused(tmp_path, torch, state):
  path = tmp_path / 'a.pth'
  torch.save({'model': state, 'other': np.float64(0.7)}, path)
  message = refusal(path)
  assert message.startswith('holds more than weights, and nothing of it was')
  assert message.endswith('save its state dict alone, or as .safetensors')
  torch.save(torch.nn.Linear(2, 3), path)
  assert 'torch.nn.modules.linear.Linear' in refusal(path)


def test_a_torch_that_may_run_code_is_refused(
  tmp_path, torch, state, monkeypatch
):
  path = tmp_path / 'a.pth'
  torch.save(state, path)
  monkeypatch.setattr(torch, '__version__', '2.5.1+cu124')
  assert 'torch 2.5.1+cu124 may run code in it' in refusal(path)


def test_without_torch_the_message_names_the_extra(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  path = tmp_path / 'a.pth'
  for start in (b'PK\x03\x04', b'\x80\x02'):
    path.write_bytes(start + bytes(20))
    message = refusal(path)
    assert "pip install torch (the extra 'torch')" in message
    assert '.safetensors files need nothing' in message
