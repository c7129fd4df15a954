"""Speed and size of the replays, compared with flashbax: ``python -m benchmarks.replay``."""
