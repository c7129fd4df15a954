"""Benchmarks: how fast, where the time goes, and against whom. Each is a command."""
