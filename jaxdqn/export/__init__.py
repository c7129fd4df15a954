"""Loading and export of trained policies."""
