"""Measurements for all claims about accelerators: ``python -m benchmarks.accelerator``."""
