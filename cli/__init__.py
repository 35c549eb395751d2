"""The command line `cc`: each command parses, calls one function of the pipelines, and shows."""
