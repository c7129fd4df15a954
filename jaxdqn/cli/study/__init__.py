"""Studies: presets, environments and seeds, resumable, with a report."""
