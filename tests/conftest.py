"""A strict session: four devices, no silent rank promotion.

Warnings are errors too, see pyproject.toml.
"""

import gc
import os
import platform
import shutil
import tempfile
from importlib import metadata

# XLA reads its flags once, when JAX first looks for devices.
# Most of a test is compiling. Only what is known to be there: XLA aborts on a
# flag it doesn't know.
_FLAGS = ['--xla_force_host_platform_device_count=4']
_JAXLIB = metadata.version('jaxlib')
if _JAXLIB.startswith('0.10.'):
  # The older code generator takes half as long.
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
if _JAXLIB.startswith(('0.10.', '0.11.')):
  # So small a program isn't worth being divided among threads.
  _FLAGS.append('--xla_cpu_parallel_codegen_split_count=1')
  if platform.machine() in ('x86_64', 'AMD64'):
    # Short vectors take LLVM a quarter less time; and without FMA, programs
    # that compute the same round alike.
    _FLAGS.append('--xla_cpu_max_isa=SSE4_2')
# Of several flags the last one counts, and the environment of a worker or of a
# process that a test starts has them already.
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
# What one test has compiled is read by the others, in all workers and in the
# processes that they start: the programs are the same, so are the results. The
# first process of a session makes the directory and deletes it. Nothing else
# is written outside of the tests' own directories.
_OWN_CACHE = 'PYTEST_XDIST_WORKER' not in os.environ
if _OWN_CACHE:
  os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='cbkd_jax-')
os.environ['JAX_ENABLE_COMPILATION_CACHE'] = 'true'
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Where in the source an operation comes from is not asked here.
os.environ['JAX_TRACEBACK_IN_LOCATIONS_LIMIT'] = '0'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_default_matmul_precision', 'highest')
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module')
def quick_compilation():
  """Unoptimised programs, for modules that compile more than they run."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.fixture(scope='module')
def uniform_shares():
  """For mixup and CutMix with alpha 1: Beta(1, 1) is uniform.

  Drawing from a Beta is two loops, a third of what such a step compiles.
  """

  def uniform(key, a, b):
    del a, b
    return jax.random.uniform(key)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax.random, 'beta', uniform)
    yield


# The longest files come first: none is left to one worker alone at the end.
_FIRST = (
  'every_method_test.py',
  'processes_test.py',  # which shares the machine with one that is no job
  'train_test.py',
  'models_test.py',
  'step_test.py',
  'launch_test.py',
  'pre_stages_test.py',
  'compare_test.py',
  'compression_test.py',
  'budget_test.py',
  'pareto_test.py',
  'flops_test.py',
  'cache_test.py',
  'initialization_test.py',
  'layer_families_test.py',
  'buckets_test.py',
  'import_weights_test.py',
  'budget_search_test.py',
  'ahead_test.py',
  'stream_run_test.py',
  'accumulation_test.py',
)


def pytest_addoption(parser):
  parser.addoption(
    '--thorough',
    action='store_true',
    help='also what takes long and proves what shorter tests show a part of',
  )


def pytest_configure(config):
  config.addinivalue_line('markers', 'thorough: runs with --thorough alone')


def pytest_unconfigure():
  if _OWN_CACHE:
    shutil.rmtree(os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)


def pytest_collection_finish():
  """Tracing makes many objects, none of them garbage for long.

  What the modules hold is not looked at again and again.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(50_000, 20, 100)


def pytest_collection_modifyitems(config, items):
  """Sorts by file; a file's tests stay in their order.

  Those marked `thorough` run where that is asked for.
  """
  if not config.option.thorough:
    left_out = [item for item in items if item.get_closest_marker('thorough')]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]

  def place(item):
    name = item.path.name
    return _FIRST.index(name) if name in _FIRST else len(_FIRST)

  items.sort(key=place)
