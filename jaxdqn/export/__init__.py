"""Trained policies for use outside a run."""
