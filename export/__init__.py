"""Checkpoint -> bundle, run from a checkout: `python -m export --help`."""
