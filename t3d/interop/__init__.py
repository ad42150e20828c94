"""The forms of other tools: checkpoints, rollouts, lm-evaluation-harness."""
