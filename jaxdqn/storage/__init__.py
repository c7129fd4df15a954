"""Run directories, parameters and checkpoints."""
