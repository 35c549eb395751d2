"""The command line `cc`: each command parses, calls one function of pipelines and prints."""
