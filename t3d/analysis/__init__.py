"""Theory on measured values: on-policy risk and conditional total correlation."""
