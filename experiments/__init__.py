"""Experiments: entry points of the commands in a checkout, and study definitions in studies/."""
