"""Names ``SUITE:ID`` of environments on the device. Imports no JAX."""

from __future__ import annotations

from jaxdqn.config.host_envs import HOST_SUITES
from jaxdqn.errors import known_name, reject

DEVICE_SUITES = ("navix", "xminigrid", "craftax", "jumanji", "pgx", "octax")
"""JAX suites of other packages; ``jaxdqn.envs.suites`` has a module for each suite."""

OWN_SUITE = "pixels"
"""Suite of the games of this library."""


def is_suite_env(name: str) -> bool:
    """Return whether ``name`` is the name of an environment of a suite on the device.

    Raises:
        ValueError: if the name has the form ``SUITE:ID`` and the suite is unknown.
    """
    suite, colon, _ = name.partition(":")
    on_device = (OWN_SUITE, *DEVICE_SUITES)
    if colon and suite not in (*on_device, *HOST_SUITES):
        known = known_name("suite", suite, [*on_device, *HOST_SUITES])
        reject("env", name, f"SUITE:ID, with SUITE {known}")
    return bool(colon) and suite in on_device
