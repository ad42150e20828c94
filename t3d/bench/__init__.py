"""Benchmarks of a model on this machine, beside what the machine itself reaches in the same run."""
