"""Trajectory DDO with path consistency: the T3D objective, arXiv:2602.12262."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from t3d.objectives.base import Context, Predictions
from t3d.rng import uniform

Fake = Literal["argmax", "sample", "exact"]


@dataclass(frozen=True)
class TrajectoryDDO:
    """T3D Eq. (10): L = L_traj-DDO + lambda * L_path.

    L_traj-DDO, Eq. (7) in the authors' generalised form, for D = the mean over a sequence's
    loss tokens of log p_student - log p_reference:
    -logsigmoid(beta * D(x0)) - alpha * logsigmoid(-beta * D(y)), y from the reference.
    L_path, Eq. (8): the mean over loss tokens of w * cross-entropy, w from the noiser.

    Args:
        alpha: weight of the fake term.
        beta: temperature of the log-ratio.
        path_weight: lambda; 0 switches path consistency off.
        fake: y is the reference's most likely token, a sample, or the exact expectation.
    """

    alpha: float = 0.5
    beta: float = 0.1
    path_weight: float = 0.2
    fake: Fake = "argmax"
    needs_reference: bool = True

    def __post_init__(self) -> None:
        if self.fake not in get_args(Fake):
            raise ValueError(f"fake must be one of {', '.join(get_args(Fake))}, got {self.fake!r}")

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, student, reference = context.tokens, context.student, context.reference
        log_prob = student.log_prob(tokens.target)
        real = tokens.sequence_mean(log_prob - reference.log_prob(tokens.target))
        fake = tokens.sequence_mean(self._fake_log_ratio(context))
        ddo = -logsigmoid(self.beta * real) - self.alpha * logsigmoid(-self.beta * fake)
        path = tokens.sequence_mean(-tokens.weight * log_prob)
        metrics = {
            "ddo": ddo.detach().mean(),
            "path": path.detach().mean(),
            "real_margin": real.detach().mean(),
            "fake_margin": fake.detach().mean(),
            "cross_entropy": -log_prob.detach().mean(),
            "reference_agreement": (student.argmax() == reference.argmax()).float().mean(),
        }
        return ddo + self.path_weight * path, metrics

    def _fake_log_ratio(self, context: Context) -> Tensor:
        """log p_student(y) - log p_reference(y) at every loss token, [M]."""
        student, reference = context.student, context.reference
        if self.fake == "exact":
            ratio = student.log_probs - reference.log_probs
            return (reference.log_probs.exp() * ratio).sum(-1)
        y = reference.argmax() if self.fake == "argmax" else _sample(reference, context.sample_keys)
        return student.log_prob(y) - reference.log_prob(y)


def _sample(predictions: Predictions, keys: Tensor) -> Tensor:
    """One token from the predicted distribution for each position, [M]."""
    cumulative = predictions.log_probs.double().exp().cumsum(-1)
    draw = uniform(keys)[:, None] * cumulative[:, -1:]
    last = cumulative.shape[-1] - 1
    return torch.searchsorted(cumulative, draw, right=True).squeeze(-1).clamp(max=last)
