"""Checkpoints in the published SDAR layout, for other tools to load; and what is wrong with one."""
