"""Teacher and student where they would run: in JAX, in ONNX Runtime."""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from cbkd_jax import buckets, deployed, formats
from cbkd_jax.deployed import Deployed
from cbkd_jax.errors import UserError

TEACHER, STUDENT = 'teacher', 'student'
_INT8 = f'{STUDENT} int8'
# Of its ways to run, those that this ONNX Runtime was built with.
_PROVIDERS = 'CUDAExecutionProvider', 'CPUExecutionProvider'

# What the files' images may be, in ONNX Runtime's words and NumPy's.
_DTYPES = {'tensor(uint8)': 'uint8', 'tensor(float)': 'float32'}

# From a batch size to a forward pass of random images, of which nothing is
# left to do when it returns or its arrays are there.
Prepare = Callable[[int], Callable[[], Any]]


class Runtime(NamedTuple):
  """What networks run on, and the networks.

  Attributes:
    name: 'jax' or 'onnxruntime'.
    about: 'version', 'device' (a name), 'threads' (None: not of a CPU), and
      'files' by network's name where there are some.
    networks: by name.
  """

  name: str
  about: dict[str, Any]
  networks: dict[str, Prepare]


def of_run(
  directory: Path,
  names: Sequence[str],
  files: Sequence[Path],
  scratch: Path,
  *,
  lenient: bool,
) -> tuple[list[Runtime], dict[str, str]]:
  """Reads a run's networks for some runtimes.

  Args:
    directory: a finished run's workdir; may be in a bucket.
    names: out of 'jax' and 'onnxruntime'.
    files: see `in_onnx_runtime`, likewise `scratch`.
    scratch: outlives the runtimes.
    lenient: leave out a runtime that is not installed.

  Returns:
    The runtimes, and of those left out the reasons.

  Raises:
    UserError: as the two functions below do.
  """
  found, left_out = [], {}
  for name in names:
    if name == 'jax':
      found.append(in_jax(directory))
      continue
    try:
      found.append(in_onnx_runtime(directory, files, scratch))
    except UserError as error:
      if not lenient:
        raise
      left_out[name] = str(error)
  return found, left_out


def in_jax(directory: Path) -> Runtime:
  """Teacher and student on JAX's first device, where images already are.

  Args:
    directory: a finished run's workdir; may be in a bucket.

  Raises:
    UserError: the run is not finished.
  """
  device = jax.local_devices()[0]
  cpu = device.platform == 'cpu'
  return Runtime(
    'jax',
    {
      'version': jax.__version__,
      'device': cpu_name() if cpu else device.device_kind,
      'threads': threads() if cpu else None,
    },
    {
      TEACHER: _jitted(deployed.teacher_of(directory, normalise=False), device),
      STUDENT: _jitted(deployed.student_of(directory, normalise=False), device),
    },
  )


def _jitted(network: Deployed, device: Any) -> Prepare:
  run = jax.jit(network.function)
  arrays = jax.device_put(network.arrays, device)

  def prepare(batch_size: int) -> Callable[[], Any]:
    shape = batch_size, *network.image_shape
    images = jax.device_put(_images(shape, network.input_dtype), device)
    return lambda: run(arrays, images)

  return prepare


def _images(shape: tuple[int, ...], dtype: str) -> np.ndarray:
  """Random images as a network wants them: raw, or normalised."""
  random = np.random.default_rng(0)
  if dtype == 'uint8':
    return random.integers(0, 256, shape, np.uint8)
  return random.standard_normal(shape, np.float32)


def in_onnx_runtime(
  directory: Path, files: Sequence[Path], scratch: Path
) -> Runtime:
  """Teacher and student in ONNX Runtime, and what else there is.

  Args:
    directory: a finished run's workdir. What `cbkd_jax.export` has left there
      is taken, unless that is in a bucket: student.onnx, and student_int8.onnx
      and teacher.onnx where they take the same images.
    files: other ONNX files of the same images.
    scratch: an existing directory, for what has not been exported.

  Raises:
    UserError: a library is not installed, the run is not finished, or a file
      is none of a network of such images.
  """
  formats.require(['onnx'])
  import onnxruntime

  paths = _files(directory, scratch)
  for path in files:
    paths[str(path) if path.name in paths else path.name] = path
  sessions = {name: _session(path) for name, path in paths.items()}
  image_shape = _input(sessions[TEACHER]).shape[1:]
  for name, session in sessions.items():
    _check(paths[name], session, image_shape)
  provider = sessions[TEACHER].get_providers()[0]
  cpu = provider.startswith('CPU')
  return Runtime(
    'onnxruntime',
    {
      'version': onnxruntime.__version__,
      'device': cpu_name() if cpu else provider,
      'threads': threads() if cpu else None,
      'files': {
        name: str(path)
        for name, path in paths.items()
        if path.parent != scratch
      },
    },
    {name: _run(session) for name, session in sessions.items()},
  )


def _files(directory: Path, scratch: Path) -> dict[str, Path]:
  """Files of the teacher, the student and, where there is one, its int8."""
  onnx = formats.module('onnx')

  def exported(name: str) -> dict[str, Path]:
    path = directory / 'export' / f'{name.replace(" ", "_")}{onnx.SUFFIX}'
    kept = not buckets.is_bucket(directory) and path.is_file()
    return {name: path} if kept else {}

  kept = exported(TEACHER) | exported(STUDENT) | exported(_INT8)
  takes = {name: _takes(_session(path)) for name, path in kept.items()}
  # All are to do what the student does, no more and no less.
  wanted = takes.get(STUDENT) or takes.get(_INT8) or 'float32'
  found = {}
  for name, of in (
    (TEACHER, deployed.teacher_of),
    (STUDENT, deployed.student_of),
  ):
    if takes.get(name) == wanted:
      found[name] = kept[name]
      continue
    found[name] = scratch / f'{name}{onnx.SUFFIX}'
    onnx.write(of(directory, normalise=wanted == 'uint8'), found[name])
  if takes.get(_INT8) == wanted:
    found[_INT8] = kept[_INT8]
  return found


def _session(path: Path) -> Any:
  """A file's network, on as many threads as JAX has.

  They don't wait busily for the next call, which is another network's.
  """
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = threads()
  options.add_session_config_entry('session.force_spinning_stop', '1')
  options.log_severity_level = 3  # errors
  there = onnxruntime.get_available_providers()
  providers = [name for name in _PROVIDERS if name in there]
  try:
    return onnxruntime.InferenceSession(str(path), options, providers=providers)
  except Exception as e:  # it has one for each kind of damage
    reason = ' '.join(str(e).split())
    raise UserError(
      f'{path}: ONNX Runtime cannot read it: {reason[:200]}'
    ) from e


def _input(session: Any) -> Any:
  return session.get_inputs()[0]


def _takes(session: Any) -> str | None:
  """The type of a network's images, as NumPy says it; None: no such."""
  return _DTYPES.get(_input(session).type)


def _check(path: Path, session: Any, image_shape: Sequence[int]) -> None:
  """Refuses a file of other images, or of a number of them that is fixed.

  Raises:
    UserError: naming the file.
  """
  found = _input(session)
  batch, *shape = found.shape
  fits = list(shape) == list(image_shape) and not isinstance(batch, int)
  if len(session.get_inputs()) != 1 or not fits or not _takes(session):
    raise UserError(
      f'{path}: takes {found.type} {found.shape}, but must take any number of '
      f'images of {list(image_shape)}, as uint8 or float'
    )


def _run(session: Any) -> Prepare:
  name, shape = _input(session).name, _input(session).shape[1:]

  def prepare(batch_size: int) -> Callable[[], Any]:
    feed = {name: _images((batch_size, *shape), _takes(session))}
    return lambda: session.run(None, feed)

  return prepare


def threads() -> int:
  """The processors that this process may use: XLA takes all of them."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_name() -> str:
  """What the machine's processor is called, as far as it says so."""
  try:
    for line in Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:  # not Linux
    pass
  return platform.processor() or platform.machine()
