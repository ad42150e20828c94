"""One denoising step: from logits to the tokens that commit.

Letters in shapes: B blocks of one size S, M masked positions of their windows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from t3d.core.rng import fold, uniform
from t3d.decoding.config import DecodingConfig
from t3d.decoding.remasking import STRATEGIES, Scores, scheduled
from t3d.decoding.sampling import entropies, sample
from t3d.decoding.sequence import State
from t3d.decoding.transfer import Column, fetch, send


def columns(config: DecodingConfig, states: list[State]) -> list[Column]:
    """The numbers about states that `choose` needs on the device, made on the host.

    Returns:
        The place of every masked position among the blocks' positions, int64 [M]; what is
        `scheduled` for each state, float64 [B]; and uniform random numbers for the candidates and
        for the strategy, float64 [M], or empty where the setting needs none.
    """
    size = config.block_size
    position = np.array([position for state in states for position in state.masked])
    numbers = [(row * size - s.start, s.seed, s.step) for row, s in enumerate(states)]
    offset, seed, step = np.repeat(np.array(numbers).T, [len(s.masked) for s in states], axis=1)
    draws = config.temperature > 0
    ranks = config.remasking in ("random", "ancestral")
    keys = torch.tensor(seed)
    if draws or ranks:
        keys = fold(keys, torch.tensor(position), torch.tensor(step))
    return [
        offset + position,
        np.array(
            [scheduled(config, s.step - s.first_step, len(s.masked)) for s in states], np.float64
        ),
        uniform(keys).numpy() if draws else [],
        uniform(fold(keys, 1)).numpy() if ranks else [],
    ]


def choose(
    config: DecodingConfig,
    states: list[State],
    logits: Tensor,
    banned: Tensor,
    sent: Sequence[Tensor] | None = None,
) -> list[list[tuple[int, int, float]]]:
    """Draw a candidate for every masked position, and choose which of them commit.

    Args:
        config: decoding setting of all these states.
        logits: logits of their masked positions, in order, [M, V].
        banned: ids that are never drawn, int64 [K].
        sent: `columns` on the device, if they are there.

    Returns:
        What each state commits: position, token id and its log-probability (nats).
    """
    device, size = logits.device, config.block_size
    shape = (len(states), size)
    cell, schedule, draws, ranks = sent or send(device, columns(config, states))

    def spread(values: Tensor, fill: float = -torch.inf) -> Tensor:
        """Put the values [M] at their blocks and positions, [B, S], and `fill` elsewhere."""
        out = torch.full((len(states) * size,), fill, dtype=values.dtype, device=device)
        return out.index_copy(0, cell, values).view(shape)

    uniforms = None if config.temperature == 0 else draws.view(torch.float64)
    candidates = sample(logits, uniforms, banned, config)
    scores = Scores(
        config=config,
        confidence=spread(candidates.confidence),
        schedule=schedule.view(torch.float64),
        uniforms=lambda: spread(ranks.view(torch.float64)),
        entropy=lambda: spread(entropies(logits, banned), torch.inf),
    )
    commit = STRATEGIES[config.remasking](scores).flatten()[cell]
    # Stacked, because one copy from the device is faster than three; float32 is exact for ids.
    results = torch.stack([candidates.ids, candidates.log_probs, commit])
    found = zip(*fetch(results), strict=True)
    return [
        [
            (position, int(token), log_prob)
            for position, (token, log_prob, commits) in zip(state.masked, found, strict=False)
            if commits
        ]
        for state in states
    ]
