"""Advantages of responses within their groups, from one reward for the answer and one for speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from t3d.core.ranges import check_choices, check_ranges

Answers = Literal["labels", "teacher"]


def z_score(values: Tensor, dim: int | None = None) -> Tensor:
    """(x - mean) / standard deviation over the numbers of `dim`, or all; 0 where all are equal."""
    keep = dim is not None
    spread = values.std(dim, correction=0, keepdim=keep)
    centred = values - values.mean(dim, keepdim=keep)
    return torch.where(spread > 1e-9, centred / spread.clamp(min=1e-9), 0.0)


@dataclass(frozen=True)
class GroupAdvantage:
    """What the responses to one prompt, a group, are rewarded for, and how they are compared.

    A = z(z_group(answer) + speed_weight * z_group(tokens a forward pass)): each reward is a
    z-score by itself within its group, so neither outweighs the other by its scale
    (LightningRL, arXiv:2603.13319; with the answer alone it is GRPO's, arXiv:2402.03300, as in
    TraceRL, arXiv:2509.06949). The outer z-score is over all groups that are kept.

    A group without a right answer is dropped. So is one whose tokens a forward pass differ by less
    than min_range where speed is rewarded, and where it is not one whose answers are equally good:
    they would teach nothing.

    Args:
        group_size: responses to a prompt, G.
        answers: what a right answer is: the task's own (labels), or the teacher's at full steps,
            for which no label is read.
        speed_weight: weight of the tokens a forward pass; only dynamic decoding varies them.
        min_range: smallest difference in tokens a forward pass of a group that is kept.
        across: whether the outer z-score is taken.
    """

    group_size: int = 32
    answers: Answers = "labels"
    speed_weight: float = 1.0
    min_range: float = 0.01
    across: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, {"[2, inf)": "group_size", "[0, inf)": "speed_weight min_range"})
        check_choices(self, "answers")

    def __call__(self, answer: Tensor, speed: Tensor) -> tuple[Tensor, Tensor]:
        """Advantages of all responses, [P, G], and which of the P groups are kept, bool [P].

        Args:
            answer: reward of each answer, 0 to 1, [P, G]; 1 is right.
            speed: tokens a forward pass, [P, G].
        """
        varied = speed if self.speed_weight else answer
        least = self.min_range if self.speed_weight else 1e-9
        kept = (answer.amax(1) > 0) & (varied.amax(1) - varied.amin(1) >= least)
        advantage = z_score(answer, 1) + self.speed_weight * z_score(speed, 1)
        if self.across and kept.any():
            advantage[kept] = z_score(advantage[kept])
        return advantage, kept
