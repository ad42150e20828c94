"""Facts that all else builds on: block grid, random numbers, trajectories, stores, files."""
