"""All that is claimed of an accelerator, measured by ``python -m benchmarks.accelerator``."""
