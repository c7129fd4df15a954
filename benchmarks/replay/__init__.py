"""Replay beside flashbax."""
