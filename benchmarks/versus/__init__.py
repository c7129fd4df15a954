"""Comparison with other libraries at matched work: ``python -m benchmarks.versus``."""
