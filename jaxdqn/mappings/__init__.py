"""Mappings: each takes a trainer and gives a trainer."""

from jaxdqn.mappings.devices import across_devices, device_collectives

__all__ = ["across_devices", "device_collectives"]
