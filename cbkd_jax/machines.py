"""Devices that share a batch: how long their sums take, on paper."""

from typing import NamedTuple

from cbkd_jax.traffic import Traffic


class Machine(NamedTuple):
  """Devices that share a batch, and how they are connected.

  Attributes:
    name: for people.
    devices: how many.
    flops: of one device per second, at its peak.
    link_bytes: that one device sends per second, over all its links.
    latency: seconds that the smallest sum over all devices takes.
  """

  name: str
  devices: int
  flops: float
  link_bytes: float
  latency: float


# From the data sheets; the latencies are assumptions. v5e: 197 TFLOP/s in
# bfloat16, 1600 Gbit/s over four links of a 16 x 16 torus: a sum goes up to 8
# hops in either direction of either axis, and back. H200: 989 TFLOP/s, NVLink
# 900 GB/s in both directions together.
V5E_256 = Machine('TPU v5e-256', 256, 197e12, 200e9, 20e-6)
H200_8 = Machine('8 x H200', 8, 989e12, 450e9, 10e-6)


def sum_seconds(traffic: Traffic, machine: Machine) -> float:
  """Of a step's sums as rings, none of them hidden behind computation.

  Args:
    traffic: the step's.
    machine: where it runs.
  """
  others = (machine.devices - 1) / machine.devices
  sending = 2 * others * traffic.bytes / machine.link_bytes
  return sending + traffic.reductions * machine.latency


def efficiency(
  flops: float, traffic: Traffic, machine: Machine, fraction_of_peak: float
) -> float:
  """Time of a device's own work / time of the step, 1 without the others.

  Args:
    flops: that a device has in a step.
    traffic: the step's.
    machine: where it runs.
    fraction_of_peak: what a device alone reaches.
  """
  alone = flops / (fraction_of_peak * machine.flops)
  return alone / (alone + sum_seconds(traffic, machine))
