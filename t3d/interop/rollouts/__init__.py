"""Trajectories from and to the rollout JSON of T3D's authors and of dLLM-RL."""
