"""Benchmarks, each a module: `python -m benchmarks.composite`."""
