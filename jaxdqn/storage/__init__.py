"""Run directories, records, parameters and checkpoints."""
