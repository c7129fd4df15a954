"""Training: one iteration as a pure function, and the trainer built from it."""
