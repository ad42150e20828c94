"""Cross-entropy on masked tokens: the NELBO and plain trajectory distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from t3d.objectives.base import Context


@dataclass(frozen=True)
class Nelbo:
    """Weighted cross-entropy per response token: the block-diffusion NELBO in nats a token.

    MDLM Eq. (10), arXiv:2406.07524, a block at a time (BD3LM, arXiv:2503.09573); the weight
    1/t comes with the noiser's view.
    """

    needs_reference: bool = False

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = context.tokens
        surprise = -context.student.log_prob(tokens.target)
        loss = tokens.sequence_sum(tokens.weight * surprise) / tokens.num_response_tokens
        return loss, {"cross_entropy": surprise.detach().mean()}


@dataclass(frozen=True)
class CrossEntropy:
    """Naive trajectory distillation, T3D Eq. (5), arXiv:2602.12262: mean over loss tokens."""

    needs_reference: bool = False

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = context.tokens
        surprise = -context.student.log_prob(tokens.target)
        return tokens.sequence_mean(surprise), {"cross_entropy": surprise.detach().mean()}
