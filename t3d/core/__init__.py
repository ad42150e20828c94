"""Facts that every other room builds on: block grid, random numbers, trajectories, stores, files."""
