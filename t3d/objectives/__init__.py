"""Objectives: tensors in, per-sequence loss and metrics out."""

from t3d.objectives.base import Context, LossTokens, Objective, Predictions
from t3d.objectives.cross_entropy import CrossEntropy, Nelbo
from t3d.objectives.t3d import TrajectoryDDO

__all__ = [
    "Context",
    "CrossEntropy",
    "LossTokens",
    "Nelbo",
    "Objective",
    "Predictions",
    "TrajectoryDDO",
]
