"""Remasking strategies: which masked positions of a window commit after a denoising pass.

Each is a pure function from `Scores` to bool [B, S]. Visible positions and those of other
windows are never chosen, and equal scores rank by position.
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
    """Untempered probability of the candidate, [B, S]; meaningless at positions that are not
        masked."""
    masked: Tensor
    """Masked positions of the current window, bool [B, S]."""
    step: Tensor
    """0-based denoising step within each window, int64 [B]."""
    uniforms: Callable[[], Tensor]
    """Function that makes uniform random numbers, float64 [B, S] in [0, 1), keyed by request,
        position and step."""
    entropy: Callable[[], Tensor]
    """Function that computes the entropy (nats) of the untempered distribution, [B, S]."""

    @property
    def quota(self) -> Tensor:
        """Tokens that the static schedule commits in this step, int64 [B]."""
        return static_quota(
            self.step, self.masked, self.config.window_size, self.config.denoising_steps
        )


def static_quota(step: Tensor, masked: Tensor, window: int, denoising_steps: int) -> Tensor:
    """Step j of K commits W // K + (j < W % K) tokens, capped by what is masked; int64 [B].

    Args:
        step: 0-based denoising step within each window, int64 [B].
        masked: bool [B, S], masked positions of the window.
        window: W, tokens a window.
        denoising_steps: K.
    """
    share, rest = divmod(window, denoising_steps)
    return torch.minimum(share + (step < rest).long(), masked.sum(1))


def reverse_rate(step: Tensor, denoising_steps: int) -> Tensor:
    """(alpha_s - alpha_t) / (1 - alpha_t) of the linear schedule, t = 1 - j / K; float64 [B].

    This probability to commit is 1 / (K - j), so the step that commits a token is uniform over the
    K steps (MDLM's reverse posterior, arXiv:2406.07524).

    Args:
        step: j, the 0-based denoising step within each window, int64 [B].
        denoising_steps: K.
    """
    return 1 / (denoising_steps - step).double()


def _ranking(score: Tensor, masked: Tensor) -> Tensor:
    """Positions in order of falling score, the masked ones first, int64 [B, S]."""
    return score.masked_fill(~masked, -torch.inf).argsort(dim=1, descending=True, stable=True)


def _highest(score: Tensor, scores: Scores) -> Tensor:
    """The `quota` masked positions with the highest scores, bool [B, S]."""
    order = _ranking(score, scores.masked)
    chosen = torch.arange(order.shape[1], device=order.device) < scores.quota[:, None]
    return torch.zeros_like(scores.masked).scatter(1, order, chosen) & scores.masked


def low_confidence_static(scores: Scores) -> Tensor:
    """The static quota in order of falling confidence (SDAR)."""
    return _highest(scores.confidence, scores)


def low_confidence_dynamic(scores: Scores) -> Tensor:
    """Every position above the threshold, and at least the static quota (SDAR)."""
    above = scores.masked & (scores.confidence > scores.config.confidence_threshold)
    return above | low_confidence_static(scores)


def sequential(scores: Scores) -> Tensor:
    """The static quota from left to right."""
    return _highest(torch.zeros_like(scores.confidence), scores)


def random(scores: Scores) -> Tensor:
    """The static quota in random order."""
    return _highest(scores.uniforms(), scores)


def entropy_bounded(scores: Scores) -> Tensor:
    """Positions in order of rising entropy, while the entropies before sum to at most the bound.

    At least one position commits. The sum of the committed positions' entropies without the
    largest bounds the error of choosing them independently (EB-Sampler, arXiv:2505.24857).
    """
    entropy = scores.entropy()
    order = _ranking(-entropy, scores.masked)
    ranked = entropy.gather(1, order)
    before = pad(ranked[:, :-1].cumsum(1), (1, 0))
    chosen = before <= scores.config.entropy_bound
    return torch.zeros_like(scores.masked).scatter(1, order, chosen) & scores.masked


def ancestral(scores: Scores) -> Tensor:
    """Each masked position commits with probability 1 / (K - j), independently of all else.

    So step j of K may commit none, and the last one commits all that are left. With candidates
    drawn at temperature 1 it is MDLM's sampler (arXiv:2406.07524).
    """
    rate = reverse_rate(scores.step, scores.config.denoising_steps)
    return scores.masked & (scores.uniforms() < rate[:, None])


STRATEGIES: dict[Remasking, Callable[[Scores], Tensor]] = {
    "low_confidence_static": low_confidence_static,
    "low_confidence_dynamic": low_confidence_dynamic,
    "sequential": sequential,
    "entropy_bounded": entropy_bounded,
    "random": random,
    "ancestral": ancestral,
}
