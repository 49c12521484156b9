"""A strict session: four devices, no silent rank promotion.

Warnings are errors too, see pyproject.toml.
"""

import os

# XLA reads its flags once, when JAX first looks for devices.
_DEVICES = '--xla_force_host_platform_device_count=4'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_DEVICES}'

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
