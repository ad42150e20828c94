"""Masks drawn at random, independently of any trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from t3d.core.ranges import check_choices, check_ranges
from t3d.core.rng import uniform
from t3d.noising.base import LEVEL, SUBSET, NoiserInput, View

Weighting = Literal["nelbo", "uniform"]


@dataclass(frozen=True)
class RandomMask:
    """Masked tokens chosen at random, independently of any trajectory.

    In a block of n response tokens, k is drawn uniformly from 1..n and k random tokens are
    masked, with weight n / k over the number of views. The expectation of the weighted
    cross-entropy is the linear schedule's NELBO with t ~ U(0, 1] (integrate 1/t over the
    number of masked tokens), its variance is lower.

    Args:
        num_views: noised copies of a sequence in one pass, with stratified k.
        weighting: nelbo, as above, or uniform, which drops the n / k.
    """

    num_views: int = 1
    weighting: Weighting = "nelbo"

    def __post_init__(self) -> None:
        check_ranges(self, {"[1, inf)": "num_views"})
        check_choices(self, "weighting")

    def __call__(self, given: NoiserInput) -> list[View]:
        response, target = given.response, given.target
        num_blocks = target.shape[1]
        count = target.sum(-1)  # [B, N]
        level = uniform(given.position_keys(num_blocks, LEVEL))
        views = []
        for number in range(self.num_views):
            share = (level + number / self.num_views) % 1.0
            num_masked = 1 + (share * count).long()
            own = given.fold(number).position_keys(target[0].numel(), SUBSET)
            draw = uniform(own).view(target.shape).masked_fill(~target, 2.0)
            loss = target & (draw.argsort(-1).argsort(-1) < num_masked[..., None])
            # Tokens after the stop token are always masked: no decoder knows them before it.
            masked = loss | (response & ~target)
            scale = count if self.weighting == "nelbo" else num_masked
            weight = (scale / (num_masked * self.num_views)).float()[..., None]
            weight = weight.expand(target.shape)
            views.append(given.view(masked, loss, weight))
        return views


@dataclass(frozen=True)
class ComplementaryMask:
    """dParallel's two views, arXiv:2509.26488: a random mask and its complement.

    Every response token is masked in exactly one of them; weights are 1.

    Args:
        share: t, the probability that the first view masks a token.
    """

    share: float = 0.5

    @property
    def num_views(self) -> int:
        return 2

    def __post_init__(self) -> None:
        check_ranges(self, {"(0, 1)": "share"})

    def __call__(self, given: NoiserInput) -> list[View]:
        response, target = given.response, given.target
        draw = uniform(given.position_keys(target[0].numel(), SUBSET)).view(target.shape)
        weight = torch.ones_like(draw, dtype=torch.float32)
        return [
            given.view(response & (chosen | ~target), chosen, weight)
            for chosen in (target & (draw < self.share), target & (draw >= self.share))
        ]
