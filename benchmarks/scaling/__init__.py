"""Scaling over devices and populations: ``python -m benchmarks.scaling``."""
