"""Training: one iteration as a pure function, and the trainer that is made of it."""
