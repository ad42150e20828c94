"""Trajectory DDO with path consistency: the T3D objective, arXiv:2602.12262."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from t3d.core.ranges import check_choices, check_ranges
from t3d.core.rng import uniform
from t3d.objectives.base import Context, Distributions, LossTokens, Objective, grouped_mean, read

Fake = Literal["argmax", "sample", "exact"]
PathWeights = Literal["steps", "flat"]
Reduction = Literal["mean", "sum"]
Over = Literal["sequence", "block"]


@dataclass(frozen=True)
class TrajectoryDDO(Objective):
    """T3D Eq. (10): L = L_traj-DDO + lambda * L_path.

    L_traj-DDO, Eq. (7) in the authors' generalised form, for D = the mean over a sequence's
    masked tokens of log p_student - log p_reference:
    -logsigmoid(beta * D(x0)) - alpha * logsigmoid(-beta * D(y)), y from the reference.
    Over blocks, there is one D for each block of each view, and the loss is their mean.
    L_path, Eq. (8): the mean over loss tokens of w * cross-entropy, w from the noiser.

    Args:
        alpha: weight of the fake term.
        beta: temperature of the log-ratio.
        path_weight: lambda; 0 switches path consistency off.
        path_weights: w of Eq. (9), or 1 for every token.
        fake: y is the reference's most likely token, a sample, or the exact expectation.
        reduction: D is the mean or the sum of the tokens' log-ratios.
        over: a sequence or a block.
    """

    alpha: float = 0.5
    beta: float = 0.1
    path_weight: float = 0.2
    path_weights: PathWeights = "steps"
    fake: Fake = "argmax"
    reduction: Reduction = "mean"
    over: Over = "sequence"
    needs_reference: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, {"[0, inf)": "alpha path_weight", "(0, inf)": "beta"})
        check_choices(self, "path_weights fake reduction over")

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = context.tokens
        log_prob, real_ratio, fake_ratio, agrees = self._log_ratios(context)
        group, owner = self._groups(tokens)
        real = self._reduce(real_ratio, tokens, group, owner)
        fake = self._reduce(fake_ratio, tokens, group, owner)
        ddo = -logsigmoid(self.beta * real) - self.alpha * logsigmoid(-self.beta * fake)
        ddo = grouped_mean(ddo, owner, tokens.num_sequences)
        weight = tokens.weight if self.path_weights == "steps" else 1.0
        path = tokens.sequence_mean(-weight * log_prob)
        metrics = {
            "ddo": ddo.detach().mean(),
            "path": path.detach().mean(),
            "real_margin": real.detach().mean(),
            "fake_margin": fake.detach().mean(),
            "cross_entropy": -log_prob.detach()[tokens.masked].mean(),
            "reference_agreement": agrees.float().mean(),
        }
        return ddo + self.path_weight * path, metrics

    def _groups(self, tokens: LossTokens) -> tuple[Tensor, Tensor]:
        """The group whose D a token belongs to, [M], and the sequence of each group, [G]."""
        if self.over == "block":
            return tokens.blocks
        return tokens.sequence, torch.arange(tokens.num_sequences, device=tokens.sequence.device)

    def _reduce(self, ratio: Tensor, tokens: LossTokens, group: Tensor, owner: Tensor) -> Tensor:
        """D of each group, [M] -> [G]."""
        if self.reduction == "mean":
            return grouped_mean(ratio, group, len(owner), tokens.masked)
        return ratio.new_zeros(len(owner)).index_add(0, group, ratio * tokens.masked)

    def _log_ratios(self, context: Context) -> tuple[Tensor, ...]:
        """Four tensors [M] over the loss tokens.

        They are log p_student(x0); log p_student - log p_reference, of x0 and of y; and whether
        both models have the same most likely token.
        """
        target = context.tokens.target
        if self.fake == "exact":
            return read(_exact, context.reference, context.student, target)

        def draw(q: Distributions, target: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
            best = q.argmax()
            y = best if self.fake == "argmax" else _sample(q, keys)
            return best, y, *q.log_prob(target, y)

        # The reference runs first, and nothing of its pass is kept while the student's runs.
        best, y, frozen, frozen_y = read(draw, context.reference, target, context.sample_keys)
        log_prob, log_prob_y, agrees = read(
            lambda p, target, y, best: (*p.log_prob(target, y), p.argmax() == best),
            context.student,
            target,
            y,
            best,
        )
        return log_prob, log_prob - frozen, log_prob_y - frozen_y, agrees


def _exact(q: Distributions, p: Distributions, target: Tensor) -> tuple[Tensor, ...]:
    """`_log_ratios` with the expectation over y of q."""
    log_prob = p.log_prob(target)
    ratio = (q.log_probs.exp() * (p.log_probs - q.log_probs)).sum(-1)
    return log_prob, log_prob - q.log_prob(target), ratio, p.argmax() == q.argmax()


def _sample(predicted: Distributions, keys: Tensor) -> Tensor:
    """One token from the predicted distribution for each position, [m]."""
    cumulative = predicted.log_probs.double().exp().cumsum(-1)
    draw = uniform(keys)[:, None] * cumulative[:, -1:]
    last = cumulative.shape[-1] - 1
    return torch.searchsorted(cumulative, draw, right=True).squeeze(-1).clamp(max=last)
