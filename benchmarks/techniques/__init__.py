"""Measured speed-up of every acceleration technique: ``jaxdqn compare``."""
