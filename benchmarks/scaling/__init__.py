"""Scaling over devices and populations."""
