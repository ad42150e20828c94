"""One denoising step: from logits to the tokens that commit.

Letters in shapes: B blocks of one size S, M masked positions of their windows, V vocabulary.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from t3d.core.rng import fold, uniform
from t3d.decoding.config import DecodingConfig
from t3d.decoding.remasking import STRATEGIES, Scores
from t3d.decoding.sampling import entropies, position_keys, sample
from t3d.decoding.sequence import Sequence


def choose(
    config: DecodingConfig, sequences: list[Sequence], logits: Tensor, banned: Tensor
) -> list[list[float]]:
    """What the strategy commits: token, log-probability (nats), and 1 or 0 for whether it does.

    Args:
        config: how all these sequences decode.
        logits: [M, V] of their masked positions, in order.
        banned: int64 [K], ids that are never drawn.

    Returns:
        Three lists of M numbers, which are exact: the ids are below 2**53.
    """
    device, size = logits.device, config.block_size
    shape = (len(sequences), size)
    cells = [
        (row * size + position - sequence.start, sequence.request.seed, position, sequence.step)
        for row, sequence in enumerate(sequences)
        for position in sequence.masked
    ]
    cell, seed, position, step = torch.tensor(cells, device=device).T  # [M] each

    def spread(values: Tensor) -> Tensor:
        """[B, S] with the values [M] in their cells."""
        out = torch.zeros(len(sequences) * size, dtype=values.dtype, device=device)
        return out.index_copy(0, cell, values).view(shape)

    @cache
    def keys() -> Tensor:
        return position_keys(seed, position, step)

    candidates = sample(
        logits,
        None if config.temperature == 0 else uniform(keys()),
        banned,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
    )
    scores = Scores(
        config=config,
        confidence=spread(candidates.confidence),
        masked=spread(torch.ones_like(cell, dtype=torch.bool)),
        step=torch.tensor([s.step - s.first_step for s in sequences], device=device),
        uniforms=lambda: spread(uniform(fold(keys(), 1))),
        entropy=lambda: spread(entropies(logits, banned)),
    )
    commit = STRATEGIES[config.remasking](scores).flatten()[cell]
    # One copy from the device instead of three.
    columns = (candidates.ids, candidates.log_probs, commit)
    return torch.stack([column.double() for column in columns]).tolist()
