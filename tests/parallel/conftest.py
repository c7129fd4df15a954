"""Fixtures that start processes."""

from tests.processes import pair, port, start  # noqa: F401 (fixtures)
