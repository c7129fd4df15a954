"""Experiments: entries of the commands for a checkout, and the study definitions in studies/."""
