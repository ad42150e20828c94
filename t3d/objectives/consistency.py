"""Consistency along a trajectory: an early state should predict what a later one predicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from t3d.core.ranges import check_ranges
from t3d.objectives.base import Context, Distributions, Objective, Predictions, read


@dataclass(frozen=True)
class Consistency(Objective):
    """CDLM, arXiv:2511.19269, on the views a, b and random mask of StatePair.

    KL(teacher(.|a) || student(.|a)) on the tokens revealed between a and b
    + consistency_weight * KL(student(.|b) || student(.|a)) on those that b still masks, the
    former without gradient, + nelbo_weight * the NELBO of the random mask, in nats a response
    token. Each KL is a mean over a sequence's tokens of its kind, 0 where there are none.

    Args:
        consistency_weight: weight of the student's own consistency.
        nelbo_weight: weight of the NELBO.
    """

    consistency_weight: float = 1.0
    nelbo_weight: float = 0.1
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, {"[0, inf)": "consistency_weight nelbo_weight"})

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, teacher, student = context.tokens, context.teacher, context.student
        early, late = tokens.view == 0, tokens.view == 1
        # All tokens that b masks are masked in a too, and both are sorted by sequence and position.
        place = tokens.sequence * (tokens.position.max() + 1) + tokens.position
        still = early & torch.isin(place, place[late])
        revealed = early & ~still

        def mean(chosen: Tensor, target: Predictions) -> Tensor:
            """KL(target || student) at the chosen tokens, averaged over each sequence."""
            [divergence] = read(_divergence, target, student[chosen])
            return tokens.sequence_mean(_spread(divergence, chosen), chosen)

        distillation = mean(revealed, teacher[revealed])
        consistency = mean(still, student[late].detach())
        random = tokens.view == 2
        [surprise] = read(
            lambda p, target: (-p.log_prob(target),), student[random], tokens.target[random]
        )
        surprise = tokens.weight * _spread(surprise, random)
        nelbo = tokens.sequence_sum(surprise) / tokens.num_response_tokens
        loss = distillation + self.consistency_weight * consistency + self.nelbo_weight * nelbo
        metrics = {
            "distillation": distillation.detach().mean(),
            "consistency": consistency.detach().mean(),
            "nelbo": nelbo.detach().mean(),
        }
        return loss, metrics


def _divergence(target: Distributions, student: Distributions) -> tuple[Tensor]:
    """KL(target || student), [m]."""
    return ((target.log_probs.exp() * (target.log_probs - student.log_probs)).sum(-1),)


def _spread(values: Tensor, chosen: Tensor) -> Tensor:
    """Values of the chosen tokens at their places among all, 0 elsewhere, [M]."""
    return values.new_zeros(len(chosen)).masked_scatter(chosen, values)
