"""Where compiled programs are kept, and that nothing depends on it."""

import os
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from cbkd_jax import compilation

SETTINGS = (
  'jax_enable_compilation_cache',
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
)


def _setting(name):
  # Not every one is an attribute.
  return getattr(jax.config, name, jax.config.values.get(name))


@pytest.fixture(autouse=True)
def _settings():
  """JAX as a user's process has it, and afterwards as it was."""
  old = {name: _setting(name) for name in SETTINGS}
  jax.config.update('jax_enable_compilation_cache', True)
  compilation_cache.reset_cache()  # it is looked for at the first program
  yield
  for name, value in old.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


def _used():
  """The directory, None without a cache."""
  used = _setting('jax_compilation_cache_dir')
  return used if _setting('jax_enable_compilation_cache') else None


def test_a_directory(tmp_path, monkeypatch):
  compilation.set_up_cache(str(tmp_path / 'new' / 'xla'))
  assert _used() == str(tmp_path / 'new' / 'xla')
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  for given, expected in ('a/b', 'a/b'), ('~/c', 'home/c'):
    compilation.set_up_cache(given)
    assert _used() == str(tmp_path / expected)
    assert (tmp_path / expected).is_dir()


def test_the_users_own_directory(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  for base, expected in (
    (str(tmp_path / 'xdg'), 'xdg/cbkd_jax/xla'),
    ('relative', '.cache/cbkd_jax/xla'),
    ('', '.cache/cbkd_jax/xla'),
  ):
    monkeypatch.setenv('XDG_CACHE_HOME', base)
    jax.config.update('jax_compilation_cache_dir', None)
    compilation.set_up_cache('')
    assert _used() == str(tmp_path / expected)


def test_what_jax_was_told_itself_stays(tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
  compilation.set_up_cache('')
  assert _used() == str(tmp_path / 'jax')
  jax.config.update('jax_enable_compilation_cache', False)
  compilation.set_up_cache(str(tmp_path / 'ours'))
  assert _used() is None
  assert os.listdir(tmp_path) == []


def test_off(tmp_path):
  jax.config.update('jax_compilation_cache_dir', str(tmp_path / 'jax'))
  compilation.set_up_cache('off')
  assert _used() is None


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path, capfd):
  (tmp_path / 'file').touch()
  compilation.set_up_cache(str(tmp_path / 'file' / 'xla'))
  assert _used() is None
  assert capfd.readouterr().err == (
    f'warning: no compilation cache, {tmp_path}/file/xla: Not a directory; '
    'see config.compilation_cache\n'
  )


@pytest.mark.parametrize(
  'damage',
  ['cut', 'empty', pytest.param('other', marks=pytest.mark.thorough)],
)
def test_a_damaged_entry_is_compiled_anew(tmp_path, damage):
  compilation.set_up_cache(str(tmp_path))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
  x = jnp.linspace(0.0, 1.0, 12).reshape(3, 4)

  def result():
    jax.clear_caches()  # as in a new process
    compilation_cache.reset_cache()
    return jax.jit(lambda x: jnp.tanh(x) @ x.T)(x).tobytes()

  expected = result()
  entries = [path for path in Path(tmp_path).iterdir() if path.is_file()]
  assert entries
  assert result() == expected
  for path in entries:
    whole = path.read_bytes()
    path.write_bytes(
      {
        'cut': whole[: len(whole) // 2],
        'empty': b'',
        'other': bytes(255 - byte for byte in whole),
      }[damage]
    )
  with pytest.warns(UserWarning, match='Error reading persistent compilation'):
    assert result() == expected


def test_damage_is_told_once_with_what_helps(tmp_path, monkeypatch):
  shown = []
  monkeypatch.setattr(warnings, 'showwarning', lambda m, *_: shown.append(m))
  compilation.set_up_cache(str(tmp_path))
  warnings.simplefilter('always')
  for entry in 'jit_a', 'jit_b':
    warnings.warn(
      f"reading persistent compilation cache: '{entry}'", stacklevel=1
    )
    warnings.warn(f'something else: {entry}', stacklevel=1)
  assert [str(message) for message in shown] == [
    f"reading persistent compilation cache: 'jit_a'; {tmp_path} may be deleted",
    'something else: jit_a',
    'something else: jit_b',
  ]
