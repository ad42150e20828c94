"""The states that the authors' released code trains on, for comparisons with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t3d.core.trajectory import NEVER
from t3d.noising.base import NoiserInput, View
from t3d.noising.state import Blocks, TrajectoryState


@dataclass(frozen=True)
class UpstreamTrace(TrajectoryState):
    """Upstream's trace mask: TrajectoryState with the order of decoding reversed.

    It hides the tokens that were committed first and shows the last, states that no teacher
    ever visited. Visible response tokens take loss too, for path consistency alone, whose
    weights make the mean of w * CE over a sequence upstream's path loss: the mean over
    levels k of the mean cross-entropy of the tokens with pi <= k.
    """

    def __call__(self, given: NoiserInput) -> list[View]:
        order = given.batch.decode_order
        committed = given.batch.response & (order < NEVER)
        backwards = torch.where(committed, NEVER - 1 - order, order)
        batch = replace(given.batch, decode_order=backwards)
        views = super().__call__(replace(given, batch=batch))
        blocks = Blocks.of(given)
        target, weight = blocks.target.flatten(1), _prefix_weight(blocks)
        return [replace(view, loss_mask=target, weight=weight) for view in views]


def _prefix_weight(blocks: Blocks) -> Tensor:
    """[B, W]: num_targets / K * sum over k >= pi of 1 / (targets with pi <= k), k in 1..K."""
    target = blocks.target.flatten(1)
    pi = torch.where(target, 1 + blocks.earlier_steps.flatten(1), 0)  # [B, W]
    level = torch.arange(1, blocks.order.shape[-1] + 1, device=pi.device)
    inside = target[..., None] & (pi[..., None] <= level)  # [B, W, K]
    count = inside.sum(1, keepdim=True)
    counted = (count > 0) & (level <= pi.amax(1)[:, None, None])  # [B, 1, K]
    per_level = counted / count.clamp(min=1) / counted.sum(-1, keepdim=True).clamp(min=1)
    return ((inside * per_level).sum(-1) * target.sum(1, keepdim=True)).float()
