"""Noisers: which states of a sequence a method trains on.

A noiser turns a batch into one or more views: the noised copy x_t, the positions that take
loss, and their weights. Its random numbers are keyed by sequence, so a view does not
depend on how sequences are batched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from t3d.blocks import BlockLayout
from t3d.rng import fold, uniform
from t3d.trajectory import NEVER, TrajectoryBatch

RandomIn = Literal["all", "full"]

_LEVEL, _SUBSET, _REPLACE, _TOKEN = range(4)


@dataclass(frozen=True)
class Vocabulary:
    """What a noiser needs to know of the tokenizer."""

    size: int
    mask_token_id: int


@dataclass(frozen=True)
class View:
    """A noised copy of a batch, W = its width rounded up to whole blocks."""

    xt: Tensor
    """int64 [B, W]; mask tokens fill the last block up."""
    loss_mask: Tensor
    """bool [B, W]."""
    weight: Tensor
    """float32 [B, W], what the objective multiplies a token's loss by."""


class Noiser(Protocol):
    """Views of a batch at a block size; `keys` is int64 [B], one key a sequence."""

    def __call__(
        self, batch: TrajectoryBatch, layout: BlockLayout, keys: Tensor, vocabulary: Vocabulary
    ) -> list[View]: ...


def _check_views(num_views: int) -> None:
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, got {num_views}")


def _blocks(values: Tensor, layout: BlockLayout, fill: int) -> Tensor:
    """[B, L] -> [B, N, S], filled up to whole blocks."""
    width = layout.ceil(values.shape[1])
    padded = pad(values, (0, width - values.shape[1]), value=fill)
    return padded.view(len(values), -1, layout.block_size)


def _position_keys(keys: Tensor, width: int, purpose: int) -> Tensor:
    """[B] -> [B, width], one key for each sequence and absolute position."""
    return fold(keys[:, None], purpose, torch.arange(width, device=keys.device))


def _view(
    batch: TrajectoryBatch,
    masked: Tensor,
    loss: Tensor,
    weight: Tensor,
    layout: BlockLayout,
    vocabulary: Vocabulary,
) -> View:
    clean = _blocks(batch.input_ids, layout, vocabulary.mask_token_id).flatten(1)
    inside = torch.arange(clean.shape[1], device=clean.device) < batch.length[:, None]
    xt = clean.masked_fill(masked.flatten(1) | ~inside, vocabulary.mask_token_id)
    return View(xt, loss.flatten(1), weight.flatten(1))


@dataclass(frozen=True)
class RandomMask:
    """Masked tokens chosen at random, independently of any trajectory.

    In a block of n response tokens, k is drawn uniformly from 1..n and k random tokens are
    masked, with weight n / k over the number of views. The expectation of the weighted
    cross-entropy is the linear schedule's NELBO with t ~ U(0, 1] (integrate 1/t over the
    number of masked tokens), its variance is lower.

    Args:
        num_views: noised copies of a sequence in one pass, with stratified k.
    """

    num_views: int = 1

    def __post_init__(self) -> None:
        _check_views(self.num_views)

    def __call__(
        self, batch: TrajectoryBatch, layout: BlockLayout, keys: Tensor, vocabulary: Vocabulary
    ) -> list[View]:
        response = _blocks(batch.response, layout, 0)
        target = _blocks(batch.target, layout, 0)
        num_blocks = target.shape[1]
        count = target.sum(-1)  # [B, N]
        level = uniform(_position_keys(keys, num_blocks, _LEVEL))
        views = []
        for number in range(self.num_views):
            share = (level + number / self.num_views) % 1.0
            num_masked = 1 + (share * count).long()
            own = _position_keys(fold(keys, number), target[0].numel(), _SUBSET)
            draw = uniform(own).view(target.shape).masked_fill(~target, 2.0)
            loss = target & (draw.argsort(-1).argsort(-1) < num_masked[..., None])
            # What follows the stop token is never known before it.
            masked = loss | (response & ~target)
            weight = (count / (num_masked * self.num_views)).float()[..., None]
            weight = weight.expand(target.shape)
            views.append(_view(batch, masked, loss, weight, layout, vocabulary))
        return views


@dataclass(frozen=True)
class TrajectoryState:
    """States that the teacher visited: before some step, its tokens and later ones masked.

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
        if not self.levels or not all(0 < level <= 1 for level in self.levels):
            raise ValueError(f"levels must lie in (0, 1], got {self.levels}")
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share must lie in [0, 1], got {self.random_share}")
        _check_views(self.num_views)
        if self.random_in not in get_args(RandomIn):
            raise ValueError(
                f"random_in must be one of {', '.join(get_args(RandomIn))}, got {self.random_in!r}"
            )

    def __call__(
        self, batch: TrajectoryBatch, layout: BlockLayout, keys: Tensor, vocabulary: Vocabulary
    ) -> list[View]:
        response = _blocks(batch.response, layout, 0)
        target = _blocks(batch.target, layout, 0)
        order = _blocks(batch.decode_order, layout, -1)
        weight = _path_weight(order, response, target)
        draw = uniform(_position_keys(keys, order.shape[1], _LEVEL))  # [B, N]
        views = []
        for number in range(self.num_views):
            level = (draw + number / self.num_views) % 1.0
            threshold = self._threshold(order, response, target, level)
            masked = response & (order >= threshold[..., None])
            view = _view(batch, masked, masked & target, weight, layout, vocabulary)
            if self.random_share > 0:
                view = self._replace(view, masked, response, fold(keys, number), vocabulary)
            views.append(view)
        return views

    def _threshold(self, order: Tensor, response: Tensor, target: Tensor, draw: Tensor) -> Tensor:
        """The decode order [B, N] from which on tokens are masked; always a visited state.

        `draw` in [0, 1) picks the noise level of each block.
        """
        level = torch.tensor(self.levels, dtype=torch.float64, device=order.device)
        edges = (level**self.level_power).cumsum(0)
        chosen = torch.searchsorted(edges, draw * edges[-1], right=True)
        rho = level[chosen.clamp(max=len(level) - 1)]
        later = order[..., None, :] >= order[..., :, None]
        masked = (later & response[..., None, :]).sum(-1)
        share = masked / response.sum(-1, keepdim=True).clamp(min=1)  # [B, N, S]
        learns = (later & target[..., None, :]).any(-1)
        visited = response & (order < NEVER)
        eligible = visited & learns & (share >= rho[..., None] - 1e-6)
        nearest = share.masked_fill(~eligible, 2.0).argmin(-1, keepdim=True)
        return order.gather(-1, nearest).squeeze(-1)

    def _replace(
        self, view: View, masked: Tensor, response: Tensor, keys: Tensor, vocabulary: Vocabulary
    ) -> View:
        width = view.xt.shape[1]
        chosen = uniform(_position_keys(keys, width, _REPLACE)) < self.random_share
        chosen &= view.loss_mask
        if self.random_in == "full":
            full = (masked == response).all(-1, keepdim=True).expand(masked.shape)
            chosen &= full.flatten(1)
        draw = uniform(_position_keys(keys, width, _TOKEN))
        # One id fewer than the vocabulary: the mask token is left out.
        token = (draw * (vocabulary.size - 1)).long()
        token += token >= vocabulary.mask_token_id
        return View(torch.where(chosen, token, view.xt), view.loss_mask, view.weight)


def _path_weight(order: Tensor, response: Tensor, target: Tensor) -> Tensor:
    """w_i of T3D Eq. (9), float32 [B, N, S]; zero where there is no loss."""
    # A token is the first of its step if no earlier position of the block shares its order.
    committed = response & (order < NEVER)
    same = (order[..., None, :] == order[..., :, None]) & committed[..., None, :]
    first = committed & ~same.tril(-1).any(-1)
    earlier = first[..., None, :] & (order[..., None, :] < order[..., :, None])
    steps = first.sum(-1, keepdim=True).clamp(min=1)
    return torch.where(target, (steps - earlier.sum(-1)) / steps, 0.0).float()
