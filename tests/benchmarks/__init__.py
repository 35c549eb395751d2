"""Benchmarks: each measures this project and another implementation in one run, as a ratio.

`make bench` runs all of them, `make bench ONLY='loader palette'` some. A benchmark is a module
``bench_NAME``; ``paired`` alternates the two sides, so that a busy machine slows both.
"""
