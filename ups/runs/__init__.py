"""A run: its folder, stages, configuration, provenance, loggers, preflight."""
