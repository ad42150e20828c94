"""The states that the authors' released code trains on, for comparisons with its numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from t3d.core.ranges import check_ranges
from t3d.core.rng import uniform
from t3d.core.trajectory import NEVER
from t3d.noising.base import LEVEL, REPLACE, TOKEN, NoiserInput, View
from t3d.noising.state import TrajectoryState


@dataclass(frozen=True)
class UpstreamTrace(TrajectoryState):
    """Upstream's noise and path weights: train/prepare.py, train/self_ddo_sdar_full.py.

    One noise level rho a sequence hides, in every block of n tokens up to the stop token, the
    int(rho * n) that were committed first: states that no teacher ever visited. Behind the stop
    token x_t shows the pad token. Of the n hidden tokens of a sequence, max(1, int(random_share
    * n)) are random ones. Visible response tokens take loss too, for path consistency alone,
    whose weights make the mean of w * CE over a sequence upstream's path loss: the mean over
    levels k of the mean cross-entropy of the first k * path_k_steps tokens of every block,
    without pad tokens.

    Args:
        path_k_steps: tokens of a block that a level of the path loss adds to the one before.
    """

    path_k_steps: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"[1, inf)": "path_k_steps"})

    def __call__(self, given: NoiserInput) -> list[View]:
        target, pad_id = given.target, given.vocabulary.pad_token_id
        order = given.to_blocks(given.batch.decode_order, NEVER).masked_fill(~target, NEVER)
        # Each token's place in the order of its block's commits, from 0; ties go by position.
        place = order.argsort(dim=-1, stable=True).argsort(-1)
        spoken = target & (given.to_blocks(given.batch.input_ids, pad_id) != pad_id)
        weight = self._prefix_weight(place, target, spoken)
        end = given.batch.prompt_length + given.batch.num_response_tokens
        behind = torch.arange(target[0].numel(), device=end.device) >= end[:, None]
        draw = uniform(given.position_keys(1, LEVEL))  # [B, 1]
        views = []
        for number in range(self.num_views):
            rho = self._level((draw + number / self.num_views) % 1.0)
            num_hidden = (target.sum(-1) * rho).long()  # [B, N]
            masked = target & (place < num_hidden[..., None])
            view = given.view(masked, target, weight)
            view = replace(view, xt=view.xt.masked_fill(behind, pad_id))
            if self.random_share > 0:
                full = (masked == target).all(-1, keepdim=True).expand(masked.shape)
                view = self._replace(given.fold(number), view, full.flatten(1))
            views.append(view)
        return views

    def _replace(self, given: NoiserInput, view: View, full: Tensor) -> View:
        hidden = view.masked & full if self.random_in == "full" else view.masked
        width, num = hidden.shape[1], hidden.sum(1, keepdim=True)
        num_random = (num.double() * self.random_share).long().clamp(min=1)
        draw = uniform(given.position_keys(width, REPLACE)).masked_fill(~hidden, 2.0)
        chosen = hidden & (draw.argsort(-1).argsort(-1) < num_random)
        draw = uniform(given.position_keys(width, TOKEN))
        token = (draw * given.vocabulary.base_size).long()
        return replace(view, xt=torch.where(chosen, token, view.xt))

    def _prefix_weight(self, place: Tensor, target: Tensor, spoken: Tensor) -> Tensor:
        """The path weight of each token, all [B, N, S].

        It is num_targets / K * the sum over levels k >= its own of 1 / (tokens up to level k).
        """
        level = torch.arange(-(-place.shape[-1] // self.path_k_steps), device=place.device)
        own = place[..., None] // self.path_k_steps
        inside = (spoken[..., None] & (own <= level)).double()  # [B, N, S, K]
        count = inside.sum((1, 2), keepdim=True)
        num_levels = (count > 0).sum(-1).clamp(min=1)
        share = (inside / count.clamp(min=1)).sum(-1) / num_levels
        return (share * target.sum((1, 2), keepdim=True)).float()
