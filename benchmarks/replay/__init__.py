"""Speed and size of the replays, beside those of flashbax: ``python -m benchmarks.replay``."""
