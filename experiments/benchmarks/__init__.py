"""Benchmarks: ours against the usual way; each checks its numbers before it prints a time."""
