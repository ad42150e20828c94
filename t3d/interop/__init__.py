"""Formats of other tools: checkpoints, rollout files, lm-evaluation-harness."""
