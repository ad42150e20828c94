"""Policy gradient on decoding trajectories: clipped, tied to the start, with self-imitation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from t3d.core.ranges import check_choices, check_ranges
from t3d.objectives.base import Context, Distributions, Objective, read

Average = Literal["sequence", "token"]


@dataclass(frozen=True)
class PolicyGradient(Objective):
    """PPO's clipped objective on the tokens that every step of a rollout committed.

    With r = p(token) / p_recorded(token), both untempered and without the ids that decoding never
    generates, A the advantage of the response and d = log p_start(token) - log p(token):

        L = -mean min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
            + kl_weight * mean (exp(d) - 1 - d) - nll_weight * mean (right * log p(token))

    The first term is PPO Eq. (7), arXiv:1707.06347, for the steps of a trajectory as in TraceRL,
    arXiv:2509.06949; the second the estimator k3 of KL(student || start),
    http://joschu.net/blog/kl-approx.html, whose start is the frozen model that training began
    with; the third the imitation of right responses of LightningRL, arXiv:2603.13319. The first
    mean is over the tokens of a sequence, then over sequences, or over all tokens; the other two
    are over all tokens. All tokens are those of the sequences that are trained on together, a
    round's: the sum over a sequence is divided by their average length, so that neither the
    micro-batch nor the number of processes changes the loss.

    Args:
        clip_low: largest fall of r that is rewarded.
        clip_high: largest rise of r that is rewarded.
        average: what the first mean is over.
        kl_weight: weight of the KL divergence from the start, beta.
        nll_weight: weight of the imitation.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    average: Average = "sequence"
    kl_weight: float = 0.01
    nll_weight: float = 0.0
    needs_teacher: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_ranges(self, {"(0, 1)": "clip_low", "(0, inf)": "clip_high"})
        check_ranges(self, {"[0, inf)": "kl_weight nll_weight"})
        check_choices(self, "average")

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, batch, target = context.tokens, context.batch, context.tokens.target
        [start] = read(
            lambda q, target: (q.without(context.banned).log_prob(target),),
            context.teacher,
            target,
        )

        def own(p: Distributions, target: Tensor) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                entropy = p.entropy(1.0)
            return p.without(context.banned).log_prob(target), entropy

        log_prob, entropy = read(own, context.student, target)
        ratio = (log_prob - batch.log_probs[tokens.sequence, tokens.position]).exp()
        advantage = batch.advantage[tokens.sequence]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage
        gain = torch.minimum(ratio * advantage, clipped)
        difference = start - log_prob
        kl = difference.exp() - 1 - difference
        nll = -batch.right[tokens.sequence] * log_prob

        def token_mean(values: Tensor) -> Tensor:
            return tokens.sequence_sum(values) / batch.average_length

        mean = tokens.sequence_mean if self.average == "sequence" else token_mean
        loss = self.kl_weight * token_mean(kl) + self.nll_weight * token_mean(nll) - mean(gain)
        metrics = {
            "ratio": ratio.detach().mean(),
            "clip_share": (clipped < ratio * advantage).float().mean(),
            "kl": kl.detach().mean(),
            "entropy": entropy.mean(),
        }
        return loss, metrics
