"""Certainty forcing: cross-entropy, and low entropy where the student is already right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from t3d.core.ranges import check_choices, check_ranges
from t3d.objectives.base import Context, Objective, read

EntropyViews = Literal["both", "first"]


@dataclass(frozen=True)
class CertaintyForcing(Objective):
    """dParallel, arXiv:2509.26488, and d3LLM: scale * sum over views of [CE + beta * H_tau].

    CE is the mean over a sequence's loss tokens of a view; H_tau the mean, over those of them
    whose most likely token is the target, of the entropy at temperature tau. Either is 0
    where a view has no such token.

    Args:
        beta: weight of the entropy.
        temperature: tau.
        scale: factor of the whole loss; d3LLM's is 1/4.
        entropy_views: both views have H_tau, or the first alone, as in d3LLM's code for LLaDA.
    """

    beta: float = 1.0
    temperature: float = 0.5
    scale: float = 1.0
    entropy_views: EntropyViews = "both"

    def __post_init__(self) -> None:
        check_ranges(self, {"[0, inf)": "beta", "(0, inf)": "temperature scale"})
        check_choices(self, "entropy_views")

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, student = context.tokens, context.student
        surprise, entropies, right = read(
            lambda p, target: (
                -p.log_prob(target),
                p.entropy(self.temperature),
                p.argmax() == target,
            ),
            student,
            tokens.target,
        )
        entropy = tokens.view_mean(entropies, right)  # [B, views]
        entropy = entropy[:, 0] if self.entropy_views == "first" else entropy.sum(1)
        loss = self.scale * (tokens.view_mean(surprise).sum(1) + self.beta * entropy)
        metrics = {
            "cross_entropy": surprise.detach().mean(),
            "entropy": entropy.detach().mean(),
            "accuracy": right.float().mean(),
        }
        return loss, metrics
