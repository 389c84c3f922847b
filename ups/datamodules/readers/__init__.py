"""Readers of trajectory files, one for each format."""
