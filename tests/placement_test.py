import types

import pytest

from cbkd_jax import cache, placement
from cbkd_jax.replicas import Replicas

MIB = 2**20
PLAN = cache.Plan(cache.Layout('exact', ()), rows=100, row_bytes=MIB)


@pytest.fixture
def choose(monkeypatch):
  def run(place, host=None, own=None, *, platform='cpu', limit=None, **more):
    device = types.SimpleNamespace(platform=platform)
    found = placement.devices
    monkeypatch.setattr(found, 'free_host_bytes', lambda: host and host * MIB)
    monkeypatch.setattr(found, 'free_bytes', lambda device: own and own * MIB)
    return placement.choose(
      PLAN,
      {'place': place, 'limit_mib': limit},
      Replicas('pmap', (device,) * 4),
      **{'rows_per_call': 10, **more},
    )

  return run


def test_on_cpu_all_copies_lie_in_one_memory(choose):
  """Four virtual devices' and the host's, of 80 % of what is free."""
  assert choose('auto', host=626)[0] == 'device'
  assert choose('auto', host=624)[0] == 'host'
  assert choose('host', host=126)[0] == 'host'
  place, why = choose('auto', host=100)
  assert place is None
  assert why == (
    '500.0 MiB of host memory to be on the device, 420.0 MiB more than there '
    'may be; 100.0 MiB of host memory to be on the host, 20.0 MiB more than '
    'there may be'
  )
  assert choose('device', host=None)[0] == 'device'
  # Another cache will be gone by then.
  assert choose('auto', host=376, freed=40 * MIB)[0] == 'device'
  assert choose('auto', host=374, freed=40 * MIB)[0] == 'host'


def test_on_an_accelerator_both_memories_count(choose):
  def found(place, host, own, **more):
    return choose(place, host, own, platform='gpu', **more)[0]

  assert found('auto', 126, 126) == 'device'
  assert found('auto', 126, 124) == 'host'
  # What is on its way to the device is 2 x 10 rows of 1 MiB.
  assert found('host', 126, 26) == 'host'
  assert found('host', 126, 24) is None
  assert found('host', 126, 26, rows_per_call=11) is None
  # Rows for the device are gathered on the host.
  assert found('device', 124, 1000) is None


def test_a_limit_comes_on_top(choose):
  assert choose('auto', host=1000, limit=100.0)[0] == 'device'
  assert choose('auto', host=624, limit=100.0)[0] == 'host'
  place, why = choose('auto', host=1000, limit=99.5)
  assert (place, why) == (None, '100.0 MiB, and cache.limit_mib = 99.5')
