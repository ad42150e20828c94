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
from t3d.decoding.sampling import entropies, sample
from t3d.decoding.sequence import Sequence


def choose(
    config: DecodingConfig, sequences: list[Sequence], logits: Tensor, banned: Tensor
) -> list[list[float]]:
    """Draw a candidate for every masked position, and choose which of them commit.

    Args:
        config: decoding setting of all these sequences.
        logits: logits of their masked positions, in order, [M, V].
        banned: ids that are never drawn, int64 [K].

    Returns:
        Three lists of M numbers: the candidates' token ids, their log-probabilities (nats), and 1
        where a candidate commits, else 0. They travel as float64, which is exact for ids below
        2**53.
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
        """Put the values [M] at their blocks and positions, [B, S]."""
        out = torch.zeros(len(sequences) * size, dtype=values.dtype, device=device)
        return out.index_copy(0, cell, values).view(shape)

    @cache
    def keys() -> Tensor:
        return fold(seed, position, step)

    draws = None if config.temperature == 0 else uniform(keys())
    candidates = sample(logits, draws, banned, config)
    scores = Scores(
        config=config,
        confidence=spread(candidates.confidence),
        masked=spread(torch.ones_like(cell, dtype=torch.bool)),
        step=torch.tensor([s.step - s.first_step for s in sequences], device=device),
        uniforms=lambda: spread(uniform(fold(keys(), 1))),
        entropy=lambda: spread(entropies(logits, banned)),
    )
    commit = STRATEGIES[config.remasking](scores).flatten()[cell]
    # Stacked, because one copy from the device is faster than three.
    columns = (candidates.ids, candidates.log_probs, commit)
    return torch.stack([column.double() for column in columns]).tolist()
