"""Time that the arithmetic and the memory of a device allow, by ``python -m benchmarks.roofline``.

The roofline model (Williams et al. 2009): a program takes at least the time of its floating-point
operations at the device's greatest rate, and at least the time of its bytes at the rate of its
memory.
"""
