"""`python -m tests.benchmarks.gpu`: every recipe on this machine's GPU, in one table.

It needs neither Ray nor MLflow, so it runs on a bare GPU machine; docs/performance.md says with
which packages. Without a GPU the same command measures small networks on the CPU.
"""
