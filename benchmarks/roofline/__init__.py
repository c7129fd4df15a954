"""Comparison with the roofline of a device: ``python -m benchmarks.roofline``.

In the roofline model (Williams et al. 2009) a program takes at least the time of its floating-point
operations at the peak rate of the device, and at least the time of its memory traffic at the peak
bandwidth.
"""
