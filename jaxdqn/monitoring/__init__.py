"""Records of a run: loggers, terminal, tables and curves."""
