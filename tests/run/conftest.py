"""Fixtures that start processes."""

from tests.processes import port, start  # noqa: F401 (fixtures)
