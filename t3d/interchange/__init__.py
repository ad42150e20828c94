"""Trajectories from and to the rollout JSON of T3D's authors and of dLLM-RL."""

from t3d.interchange.alignment import Reason, Skipped, TransferReport
from t3d.interchange.exporting import export_rollouts
from t3d.interchange.importing import import_rollouts
from t3d.interchange.rows import Format

__all__ = ["Format", "Reason", "Skipped", "TransferReport", "export_rollouts", "import_rollouts"]
