"""Benchmarks of speed, memory and scaling, and comparisons with other libraries.

Each is a command, ``python -m benchmarks.NAME``, where NAME is throughput, startup, reliability,
scaling, scaling.model, replay, resets, suites, host, timeline, actors, arrangements, chaos,
monitoring, operations, gpu_program, versus, techniques, held, driving, roofline or accelerator.
``results_pages`` writes the tables of the pages from the records.
"""
