"""The command line: train, evaluate, plot."""
