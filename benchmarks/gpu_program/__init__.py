"""Count the GPU launches of one iteration, on a machine without a GPU."""
