"""One denoising step: from logits to the tokens that commit.

Letters in shapes: B blocks of one size S, M masked positions of their windows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from t3d.core.rng import fold, uniform
from t3d.decoding.config import DecodingConfig
from t3d.decoding.remasking import STRATEGIES, Scores, scheduled
from t3d.decoding.sampling import entropies, sample
from t3d.decoding.sequence import State
from t3d.decoding.transfer import Column, fetch


def columns(config: DecodingConfig, states: list[State]) -> list[Column]:
    """The numbers about states that `choose` needs on the device, made on the host.

    Returns:
        First, end to end: the places of the masked positions among the blocks' positions, and the
        bits of uniform random numbers for the candidates and for the strategy, where the setting
        needs them, int64 [1 to 3 * M]. They are one column, so that one selection cuts them all.
        Second: what is `scheduled` for each state, float64 [B].
    """
    size = config.block_size
    position = np.array([position for state in states for position in state.masked])
    numbers = [(row * size - s.start, s.seed, s.step) for row, s in enumerate(states)]
    offset, seed, step = np.repeat(np.array(numbers).T, [len(s.masked) for s in states], axis=1)
    draws = config.temperature > 0
    ranks = config.remasking in ("random", "ancestral")
    places = [offset + position]
    if draws or ranks:
        keys = fold(torch.tensor(seed), torch.tensor(position), torch.tensor(step))
        wanted = [keys] * draws + [fold(keys, 1)] * ranks
        places += [uniform(own).numpy().view(np.int64) for own in wanted]
    schedule = [scheduled(config, s.step - s.first_step, s.num_masked) for s in states]
    return [np.concatenate(places), np.array(schedule, np.float64)]


Candidate = tuple[float, float, float]
"""Token id and log-probability (nats) of a candidate, and whether it commits."""


class Chosen(NamedTuple):
    """The candidates of all masked positions, and which of them commit."""

    ids: Tensor
    """Token ids of the candidates, int64 [M]."""
    commits: Tensor
    """Whether they commit, bool [M]."""
    read: Callable[[], list[list[float]]]
    """Function that waits for the device and returns ids, log-probabilities and `commits`."""

    def of(self, states: list[State]) -> list[list[Candidate]]:
        """Of each state, token ids, log-probabilities (nats) and `commits` of its candidates."""
        found = zip(*self.read(), strict=True)
        return [[*islice(found, state.num_masked)] for state in states]


def committed(masked: Sequence[int], found: list[Candidate]) -> list[tuple[int, int, float]]:
    """Position, token id and log-probability (nats) of the candidates that commit."""
    rows = zip(masked, found, strict=False)
    return [(position, int(token), log_prob) for position, (token, log_prob, yes) in rows if yes]


def choose(
    config: DecodingConfig,
    logits: Tensor,
    banned: Tensor,
    sent: Sequence[Tensor],
) -> Chosen:
    """Draw a candidate for every masked position, and choose which of them commit.

    Args:
        config: decoding setting of all states.
        logits: logits of their masked positions, in order, [M, V].
        banned: ids that are never drawn, int64 [K].
        sent: `columns` on the device.
    """
    places, schedule = sent
    cell, *uniforms = places.view(-1, len(logits))
    shape = (len(schedule), config.block_size)

    def spread(values: Tensor, fill: float = -torch.inf) -> Tensor:
        """Put the values [M] at their blocks and positions, [B, S], and `fill` elsewhere."""
        out = torch.full((prod(shape),), fill, dtype=values.dtype, device=values.device)
        return out.index_copy(0, cell, values).view(shape)

    draws = None if config.temperature == 0 else uniforms[0].view(torch.float64)
    candidates = sample(logits, draws, banned, config)
    scores = Scores(
        config=config,
        confidence=spread(candidates.confidence),
        schedule=schedule.view(torch.float64),
        uniforms=lambda: spread(uniforms[-1].view(torch.float64)),
        entropy=lambda: spread(entropies(logits, banned), torch.inf),
    )
    commit = STRATEGIES[config.remasking](scores).flatten()[cell]
    # Stacked, because one copy from the device is faster than three; float32 is exact for ids.
    results = torch.stack([candidates.ids, candidates.log_probs, commit])
    return Chosen(candidates.ids, commit, fetch(results))
