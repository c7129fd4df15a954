"""Launch a run over several processes."""
