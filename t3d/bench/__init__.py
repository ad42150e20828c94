"""Benchmarks of a model on this machine, compared with rates of the machine itself."""
