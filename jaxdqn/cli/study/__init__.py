"""Studies: presets on environments over seeds, resumable, with a report."""
