"""Export of checkpoints in the published SDAR layout, and checks of exported ones."""
