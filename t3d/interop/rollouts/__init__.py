"""Import and export of trajectories as rollout JSON of T3D's authors and of dLLM-RL."""
