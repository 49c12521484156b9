"""Where a phase's cache is kept: what fits."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from cbkd_jax import devices
from cbkd_jax.cache import Plan
from cbkd_jax.replicas import Replicas

PLACES = ('device', 'host', None)  # in the order of what they need of devices

# Of what is free: the step itself needs memory too.
_SHARE = 0.8


class _Need(NamedTuple):
  """Bytes wanted of a memory, and bytes free there (None: it doesn't say)."""

  memory: str
  needed: float
  free: float | None

  @property
  def missing(self) -> float:
    return 0.0 if self.free is None else self.needed - _SHARE * self.free


def choose(
  plan: Plan,
  fields: Mapping[str, Any],
  replicas: Replicas,
  rows_per_call: int,
  freed: int = 0,
) -> tuple[str | None, str]:
  """The first place where a cache fits.

  Args:
    plan: the cache.
    fields: the config's `cache`: its `place` ('device', 'host', or 'auto' for
      either, in this order) and `limit_mib`.
    replicas: the devices; each would hold a copy.
    rows_per_call: that one device looks up in one call.
    freed: bytes of one copy of a cache that will be gone by then.

  Returns:
    'device', 'host' or None if it fits nowhere; and in words why.
  """
  limit = fields['limit_mib']
  if limit is not None and plan.bytes > limit * 2**20:
    return None, f'{_mib(plan.bytes)}, and cache.limit_mib = {limit:g}'
  place, refused = fields['place'], []
  for name in ('device', 'host') if place == 'auto' else (place,):
    needs = _needs(plan, name, replicas, rows_per_call, freed)
    short = [need for need in needs if need.missing > 0]
    if not short:
      return name, f'{_mib(plan.bytes)} on the {name}'
    refused += [
      f'{_mib(need.needed)} of {need.memory} memory to be on the {name}, '
      f'{_mib(need.missing)} more than there may be'
      for need in short
    ]
  return None, '; '.join(refused)


def _needs(
  plan: Plan, place: str, replicas: Replicas, rows_per_call: int, freed: int
) -> list[_Need]:
  device = replicas.devices[0]
  host = devices.free_host_bytes()
  # Rows are gathered on the host, wherever they go from there.
  if device.platform == 'cpu':
    copies = 1 + len(replicas.devices) * (place == 'device')
    return [_Need('host', copies * plan.bytes - copies * freed, host)]
  own = devices.free_bytes(device)
  if place == 'device':
    return [
      _Need('device', plan.bytes - freed, own),
      _Need('host', plan.bytes, host),
    ]
  # While one call's rows are used, the next one's are sent.
  sent = 2 * rows_per_call * plan.row_bytes
  return [_Need('host', plan.bytes - freed, host), _Need('device', sent, own)]


def _mib(size: float) -> str:
  return f'{size / 2**20:,.1f} MiB'
