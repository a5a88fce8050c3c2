"""Benchmark scripts; ``python -m benchmarks.NAME --help`` describes one."""
