"""Benchmarks: each measures us and another implementation in one run, and prints the ratio."""
