"""The base of all other packages: errors, files, batches, norms."""
