"""Objectives: tensors in, per-sequence loss and metrics out."""

from t3d.objectives.advantages import GroupAdvantage
from t3d.objectives.base import Context, Distributions, LossTokens, Objective, Predictions, read
from t3d.objectives.certainty import CertaintyForcing
from t3d.objectives.consistency import Consistency
from t3d.objectives.cross_entropy import CrossEntropy, Nelbo
from t3d.objectives.policy_gradient import PolicyGradient
from t3d.objectives.t3d import TrajectoryDDO

__all__ = [
    "CertaintyForcing",
    "Consistency",
    "Context",
    "CrossEntropy",
    "Distributions",
    "GroupAdvantage",
    "LossTokens",
    "Nelbo",
    "Objective",
    "PolicyGradient",
    "Predictions",
    "TrajectoryDDO",
    "read",
]
