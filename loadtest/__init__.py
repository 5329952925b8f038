"""Benchmarks and load tests: `python -m loadtest`."""
