"""Cross-entropy on masked tokens: the NELBO and plain trajectory distillation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from t3d.objectives.base import Context, Objective


@dataclass(frozen=True)
class Nelbo(Objective):
    """Weighted cross-entropy per response token: the block-diffusion NELBO in nats a token.

    MDLM Eq. (10), arXiv:2406.07524, a block at a time (BD3LM, arXiv:2503.09573); the weight
    1/t comes with the noiser's view.
    """

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = context.tokens
        surprise = context.surprise()
        loss = tokens.sequence_sum(tokens.weight * surprise) / tokens.num_response_tokens
        return loss, {"cross_entropy": surprise.detach().mean()}


@dataclass(frozen=True)
class CrossEntropy(Objective):
    """Mean cross-entropy of a sequence's masked tokens.

    On trajectory states it is naive trajectory distillation, T3D Eq. (5), arXiv:2602.12262; on
    random masks ReDi's retraining on its own pairs of noise and response, arXiv:2507.15897.
    """

    def __call__(self, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        tokens = context.tokens
        surprise = context.surprise()
        loss = tokens.sequence_mean(surprise, tokens.masked)
        return loss, {"cross_entropy": surprise.detach()[tokens.masked].mean()}
