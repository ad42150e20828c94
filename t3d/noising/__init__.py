"""Noisers: which states of a sequence a method trains on.

A noiser turns a batch into one or more views: the noised copy x_t, the positions that take
loss, and their weights. Its random numbers are keyed by sequence, so a view does not
depend on how sequences are batched.
"""

from t3d.noising.base import Noiser, NoiserInput, View, Vocabulary
from t3d.noising.random import ComplementaryMask, RandomMask
from t3d.noising.state import ComplementaryState, StatePair, TrajectoryState
from t3d.noising.steps import TrajectorySteps
from t3d.noising.upstream import UpstreamTrace

__all__ = [
    "ComplementaryMask",
    "ComplementaryState",
    "Noiser",
    "NoiserInput",
    "RandomMask",
    "StatePair",
    "TrajectoryState",
    "TrajectorySteps",
    "UpstreamTrace",
    "View",
    "Vocabulary",
]
