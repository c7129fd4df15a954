"""Trained policies outside a run."""
