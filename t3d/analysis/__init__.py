"""Measurements of the theory's quantities: on-policy risk and conditional total correlation."""
