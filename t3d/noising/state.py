"""States of a trajectory: the tokens of some step and of all later ones are masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from t3d.core.ranges import check_choices, check_ranges
from t3d.core.rng import other_token, uniform
from t3d.core.trajectory import NEVER
from t3d.noising.base import LATER, LEVEL, RANDOM_VIEW, REPLACE, TOKEN, NoiserInput, View
from t3d.noising.random import RandomMask

RandomIn = Literal["all", "full"]


@dataclass(frozen=True)
class Blocks:
    """A batch cut into blocks, [B, N, S] each; states are thresholds of decode order, [B, N]."""

    response: Tensor
    target: Tensor
    order: Tensor

    @classmethod
    def of(cls, given: NoiserInput) -> Blocks:
        order = given.to_blocks(given.batch.decode_order, -1)
        return cls(given.response, given.target, order)

    @cached_property
    def committed(self) -> Tensor:
        return self.response & (self.order < NEVER)

    def first(self, chosen: Tensor) -> Tensor:
        """The leftmost of the chosen tokens that each step of a block committed."""
        same = self.order[..., None, :] == self.order[..., :, None]
        return chosen & ~(same & chosen[..., None, :]).tril(-1).any(-1)

    @cached_property
    def steps(self) -> Tensor:
        """One token for each step of a block."""
        return self.first(self.committed)

    @cached_property
    def earlier_steps(self) -> Tensor:
        """pi - 1 of each token: how many steps of its block came before its own."""
        before = self.order[..., None, :] < self.order[..., :, None]
        return (self.steps[..., None, :] & before).sum(-1)

    @cached_property
    def learns(self) -> Tensor:
        """Whether any loss token is masked in the state before the step of each token."""
        later = self.order[..., None, :] >= self.order[..., :, None]
        return self.committed & (later & self.target[..., None, :]).any(-1)

    def masked(self, threshold: Tensor) -> Tensor:
        """The response tokens of that decode order or a later one."""
        return self.response & (self.order >= threshold[..., None])

    def nearest(self, rho: Tensor) -> Tensor:
        """The visited state whose masked share is nearest to rho [B, N] from above.

        A state in which no loss token is masked is passed over.
        """
        later = self.order[..., None, :] >= self.order[..., :, None]
        masked = (later & self.response[..., None, :]).sum(-1)
        share = masked / self.response.sum(-1, keepdim=True).clamp(min=1)
        eligible = self.learns & (share >= rho[..., None] - 1e-6)
        nearest = share.masked_fill(~eligible, 2.0).argmin(-1, keepdim=True)
        return self.order.gather(-1, nearest).squeeze(-1)

    def path_weight(self) -> Tensor:
        """w_i of T3D Eq. (9), arXiv:2602.12262, float32; zero where there is no loss."""
        num_steps = self.steps.sum(-1, keepdim=True).clamp(min=1)
        weight = (num_steps - self.earlier_steps) / num_steps
        return torch.where(self.target, weight, 0.0).float()


@dataclass(frozen=True)
class TrajectoryState:
    """States that the teacher visited: the tokens of some step and of later ones are masked.

    Each block draws a noise level rho and takes the visited state whose masked share is
    nearest to rho from above. The share is that of the block's response positions, those
    after the stop token included, so that rho = 1 is the state before the first step; a
    state that has nothing left to learn is passed over. Weights are those of path
    consistency, T3D Eq. (9), arXiv:2602.12262: w = (B - pi + 1) / B with pi the step (1..B)
    that committed a token.

    Args:
        levels: the noise levels rho.
        level_power: rho is drawn with probability proportional to rho ** level_power.
        random_share: share of masked positions that carry a random token instead.
        random_in: all blocks, or only the fully masked ones.
        num_views: noised copies of a sequence in one pass. They share the clean copy, so two
            cost far less than two sequences; their noise levels are stratified.
    """

    levels: tuple[float, ...] = (1.0, 0.75, 0.5, 0.25)
    level_power: float = 8.0
    random_share: float = 0.0
    random_in: RandomIn = "all"
    num_views: int = 1

    def __post_init__(self) -> None:
        check_ranges(
            self,
            {
                "(0, 1]": "levels",
                "[0, inf)": "level_power",
                "[0, 1]": "random_share",
                "[1, inf)": "num_views",
            },
        )
        if not self.levels:
            raise ValueError("levels is empty; name at least one")
        check_choices(self, "random_in")

    def __call__(self, given: NoiserInput) -> list[View]:
        blocks = Blocks.of(given)
        weight = blocks.path_weight()
        draw = uniform(given.position_keys(weight.shape[1], LEVEL))  # [B, N]
        views = []
        for number in range(self.num_views):
            rho = self._level((draw + number / self.num_views) % 1.0)
            masked = blocks.masked(blocks.nearest(rho))
            loss = masked & blocks.target
            view = given.view(masked, loss, weight)
            if self.random_share > 0:
                full = (masked == blocks.response).all(-1, keepdim=True).expand(masked.shape)
                view = self._replace(given.fold(number), view, full.flatten(1))
            views.append(view)
        return views

    def _level(self, draw: Tensor) -> Tensor:
        """The noise level that a number in [0, 1) picks, same shape."""
        level = torch.tensor(self.levels, dtype=torch.float64, device=draw.device)
        edges = (level**self.level_power).cumsum(0)
        chosen = torch.searchsorted(edges, draw * edges[-1], right=True)
        return level[chosen.clamp(max=len(level) - 1)]

    def _replace(self, given: NoiserInput, view: View, full: Tensor) -> View:
        width, vocabulary = view.xt.shape[1], given.vocabulary
        chosen = uniform(given.position_keys(width, REPLACE)) < self.random_share
        chosen &= view.loss_mask
        if self.random_in == "full":
            chosen &= full
        own = given.position_keys(width, TOKEN)
        token = other_token(own, vocabulary.size, {vocabulary.mask_token_id, *vocabulary.banned})
        return replace(view, xt=torch.where(chosen, token, view.xt))


@dataclass(frozen=True)
class ComplementaryState:
    """d3LLM's two views, arXiv:2601.07568: a visited state, and its complement in every block.

    Each block draws its noise level uniformly between a bound, which grows linearly with
    training, and last_level. The complement, in which only what the state masks is visible, is
    no state that the teacher was ever in. Weights are 1.

    Args:
        first_level: the bound at the first optimizer step.
        last_level: the highest level, and the bound at the end of training.
    """

    first_level: float = 0.0
    last_level: float = 0.8

    @property
    def num_views(self) -> int:
        return 2

    def __post_init__(self) -> None:
        check_ranges(self, {"[0, 1]": "first_level last_level"})

    def __call__(self, given: NoiserInput) -> list[View]:
        blocks = Blocks.of(given)
        bound = self.first_level + (self.last_level - self.first_level) * given.progress
        draw = uniform(given.position_keys(blocks.order.shape[1], LEVEL))  # [B, N]
        state = blocks.masked(blocks.nearest(bound + (self.last_level - bound) * draw))
        weight = torch.ones_like(state, dtype=torch.float32)
        # Tokens after the stop token are always masked: no decoder knows them before it.
        complement = blocks.response & ~(state & blocks.target)
        return [
            given.view(masked, masked & blocks.target, weight) for masked in (state, complement)
        ]


@dataclass(frozen=True)
class StatePair:
    """CDLM's views, arXiv:2511.19269: two states a < b of one trajectory, and a random mask.

    Each block draws a uniformly from the states before steps that committed a loss token, and b
    uniformly from the later ones, the finished block included. View 0 is a and view 1 is b, so
    view 0 masks everything that view 1 masks. View 2 is RandomMask's, for the NELBO.
    """

    @property
    def num_views(self) -> int:
        return 3

    def __call__(self, given: NoiserInput) -> list[View]:
        blocks = Blocks.of(given)
        state = blocks.first(blocks.target)
        num_states = state.sum(-1)  # [B, N]
        # The states of a block in order of time; the finished block comes last.
        times = blocks.order.masked_fill(~state, NEVER).sort(-1).values
        times = pad(times, (0, 1), value=NEVER)
        early, late = (
            uniform(given.position_keys(times.shape[1], purpose)) for purpose in (LEVEL, LATER)
        )
        a = (early * num_states).long()
        b = a + 1 + (late * (num_states - a)).long()
        weight = torch.ones_like(state, dtype=torch.float32)
        views = []
        for chosen in (a, b):
            masked = blocks.masked(times.gather(-1, chosen[..., None]).squeeze(-1))
            loss = masked & blocks.target
            views.append(given.view(masked, loss, weight))
        return views + RandomMask()(given.fold(RANDOM_VIEW))
