"""All steps of a trajectory: the states before them, each with the tokens that it committed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from t3d.core.ranges import check_ranges
from t3d.noising.base import NoiserInput, View
from t3d.noising.state import Blocks


@dataclass(frozen=True)
class TrajectorySteps:
    """View s is, in every block, the state before its step s; loss is on what step s committed.

    The likelihood of a trajectory is a product over its steps, each of which draws its tokens
    independently given the state before it (TraceRL, arXiv:2509.06949). Every response token is a
    loss token in exactly one view, where the student predicts it from what the decoder saw. There
    are as many views as the batch's longest block has steps; a view has no columns for blocks that
    have fewer. Weights are 1.

    Args:
        merge: neighbouring steps that share a view, TraceRL's shrinkage. Their tokens are predicted
            from the state before the first of them, which costs fewer views and is exact for 1.
    """

    merge: int = 1

    @property
    def num_views(self) -> None:
        return None

    def __post_init__(self) -> None:
        check_ranges(self, {"[1, inf)": "merge"})

    def __call__(self, given: NoiserInput) -> list[View]:
        blocks = Blocks.of(given)
        step = blocks.earlier_steps // self.merge
        loss = blocks.committed & blocks.target
        weight = torch.ones_like(step, dtype=torch.float32)
        hidden = blocks.response & ~blocks.committed
        return [
            given.view(hidden | (blocks.committed & (step >= view)), loss & (step == view), weight)
            for view in range(int(step[loss].max()) + 1)
        ]
