"""Benchmarks of speed, memory and scaling, and comparisons with other libraries.

Each is a command, ``python -m benchmarks.NAME``, where NAME is throughput, startup, reliability,
scaling, scaling.model, replay, resets, versus, techniques, held, driving,
roofline and accelerator.
"""
