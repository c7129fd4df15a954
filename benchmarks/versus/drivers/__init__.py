"""Drivers of peers. They run in the interpreter of a peer and import nothing of this project."""
