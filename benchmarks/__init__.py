"""Measurements. Each prints its figures and can be run again: `python -m benchmarks.NAME`."""
