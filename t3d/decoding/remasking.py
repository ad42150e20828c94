"""Remasking strategies: which masked positions of a window commit after a denoising pass.

Each is a pure function from `Scores` to bool [B, S]. Visible positions and those of other
windows are never chosen, and equal scores rank by position. What the step's number alone decides
is computed on the host.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from t3d.decoding.config import DecodingConfig, Remasking


@dataclass(frozen=True)
class Scores:
    """The input of a strategy: B blocks, of which one window each is being denoised."""

    config: DecodingConfig
    confidence: Tensor
    """Untempered probability of the candidate, [B, S]; -inf at positions that are not masked
        ones of the current window."""
    schedule: Tensor
    """What `scheduled` says of each block's step, float64 [B]."""
    uniforms: Callable[[], Tensor]
    """Function that makes uniform random numbers, float64 [B, S] in [0, 1), keyed by request,
        position and step; -inf at other positions."""
    entropy: Callable[[], Tensor]
    """Function that computes the entropy (nats) of the untempered distribution, [B, S]; inf at
        other positions."""


def scheduled(config: DecodingConfig, step: int, num_masked: int) -> float:
    """The static schedule's number of tokens in a step, or with `ancestral` each one's probability
    to commit.

    Args:
        step: 0-based denoising step within the window.
        num_masked: number of masked positions of the window, at least 1.
    """
    if config.remasking == "ancestral":
        return reverse_rate(step, config.denoising_steps)
    return static_quota(step, num_masked, config.window_size, config.denoising_steps)


def static_quota(step: int, num_masked: int, window: int, denoising_steps: int) -> int:
    """Step j of K commits W // K + (j < W % K) tokens of a window of W, if so many are masked."""
    share, rest = divmod(window, denoising_steps)
    return min(share + (step < rest), num_masked)


def reverse_rate(step: int, denoising_steps: int) -> float:
    """(alpha_s - alpha_t) / (1 - alpha_t) of the linear schedule, t = 1 - j / K, in step j of K.

    This probability to commit is 1 / (K - j), so the step that commits a token is uniform over the
    K steps (MDLM's reverse posterior, arXiv:2406.07524).
    """
    return 1 / (denoising_steps - step)


def _highest(score: Tensor, scores: Scores) -> Tensor:
    """The scheduled number of positions with the highest scores, bool [B, S]."""
    order = score.argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(order.shape[1], device=order.device) < scores.schedule[:, None]
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def low_confidence_static(scores: Scores) -> Tensor:
    """The static quota in order of falling confidence (SDAR)."""
    return _highest(scores.confidence, scores)


def low_confidence_dynamic(scores: Scores) -> Tensor:
    """Every position above the threshold, and at least the static quota (SDAR)."""
    above = scores.confidence > scores.config.confidence_threshold
    return above | low_confidence_static(scores)


def sequential(scores: Scores) -> Tensor:
    """The static quota from left to right."""
    # Not by order, since the confidence of logits that overflowed is NaN.
    return _highest((scores.confidence != -torch.inf).byte(), scores)


def random(scores: Scores) -> Tensor:
    """The static quota in random order."""
    return _highest(scores.uniforms(), scores)


def entropy_bounded(scores: Scores) -> Tensor:
    """Positions in order of rising entropy, while the entropies before sum to at most the bound.

    At least one position commits. The sum of the committed positions' entropies without the
    largest bounds the error of choosing them independently (EB-Sampler, arXiv:2505.24857).
    """
    entropy = scores.entropy()
    order = (-entropy).argsort(dim=1, descending=True, stable=True)
    ranked = entropy.gather(1, order)
    before = pad(ranked[:, :-1].cumsum(1), (1, 0))
    chosen = (before <= scores.config.entropy_bound) & (ranked != torch.inf)
    return torch.zeros_like(chosen).scatter(1, order, chosen)


def ancestral(scores: Scores) -> Tensor:
    """Each masked position commits with probability 1 / (K - j), independently of all else.

    So step j of K may commit none, and the last one commits all that are left. With candidates
    drawn at temperature 1 it is MDLM's sampler (arXiv:2406.07524).
    """
    uniforms = scores.uniforms()
    return (uniforms >= 0) & (uniforms < scores.schedule[:, None])


STRATEGIES: dict[Remasking, Callable[[Scores], Tensor]] = {
    "low_confidence_static": low_confidence_static,
    "low_confidence_dynamic": low_confidence_dynamic,
    "sequential": sequential,
    "entropy_bounded": entropy_bounded,
    "random": random,
    "ancestral": ancestral,
}
