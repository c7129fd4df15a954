"""Count what one iteration launches on a GPU, on a machine without one."""
