"""Comparison with other libraries at a matched workload: ``python -m benchmarks.versus``."""
