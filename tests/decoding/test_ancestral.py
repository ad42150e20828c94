"""Ancestral sampling draws from the exact distribution of its reverse process.

A model of three words and three masked positions is small enough to enumerate: every state,
every set of positions that a step may commit, every word they may take.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from functools import cache
from itertools import combinations, product
from typing import TypeVar

import pytest
import torch

from t3d.decoding.config import DecodingConfig
from t3d.decoding.engine import BlockDecoder
from t3d.decoding.request import Completion, Request
from t3d.testing import tiny

NUM_WORDS, MASK = 3, 3
MODEL = tiny(vocab_size=4, block_size=4, initializer_range=1.0)
PROMPT = (2,)
NUM_SAMPLES = 1500

State = tuple[int, ...]
T = TypeVar("T")


def settings(denoising_steps: int, window: int | None = None) -> DecodingConfig:
    return DecodingConfig(
        block_size=4,
        denoising_steps=denoising_steps,
        remasking="ancestral",
        temperature=1.0,
        max_new_tokens=3,
        window=window,
    )


@cache
def samples(config: DecodingConfig) -> list[Completion]:
    decoder = BlockDecoder(
        MODEL, config, mask_token_id=MASK, stop_token_ids=(), batch_size=NUM_SAMPLES
    )
    return decoder.decode([Request(list(PROMPT), seed) for seed in range(NUM_SAMPLES)])


@cache
@torch.inference_mode()
def word_probs(state: State) -> list[list[float]]:
    """[position][word]"""
    return MODEL(torch.tensor([state])).logits[0, :, :NUM_WORDS].softmax(-1).tolist()


@cache
def one_step(state: State, window: range, rate: float) -> dict[State, float]:
    """Where MDLM's reverse posterior may lead, and with what probability."""
    masked = [p for p in window if state[p] == MASK]
    out: dict[State, float] = defaultdict(float)
    for num in range(len(masked) + 1):
        stays = rate**num * (1 - rate) ** (len(masked) - num)
        for chosen in combinations(masked, num):
            for words in product(range(NUM_WORDS), repeat=num):
                following, probability = list(state), stays
                for p, word in zip(chosen, words, strict=True):
                    following[p] = word
                    probability *= word_probs(state)[p][word]
                out[tuple(following)] += probability
    return out


@cache
def exact(config: DecodingConfig) -> dict[State, float]:
    """Every response and its probability."""
    states: dict[State, float] = {PROMPT + (MASK,) * 3: 1.0}
    for start in range(0, 4, config.window_size):
        for j in range(config.denoising_steps):
            later: dict[State, float] = defaultdict(float)
            for state, probability in states.items():
                window = range(start, start + config.window_size)
                rate = 1 / (config.denoising_steps - j)
                for following, share in one_step(state, window, rate).items():
                    later[following] += probability * share
            states = later
    return {s[1:]: p for s, p in states.items() if p > 0}


def deviation(counts: Counter[T], expected: dict[T, float]) -> float:
    """Pearson's chi-square in standard deviations above its mean; rare outcomes share a bin."""
    total = sum(counts.values())
    bins: dict[object, tuple[float, float]] = {}
    for outcome, probability in expected.items():
        key = outcome if probability * total >= 8 else "rare"
        observed, predicted = bins.get(key, (0.0, 0.0))
        bins[key] = (observed + counts[outcome], predicted + probability * total)
    assert sum(o for o, _ in bins.values()) == total  # nothing impossible happened
    statistic = math.fsum((o - e) ** 2 / e for o, e in bins.values())
    freedom = len(bins) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(("denoising_steps", "window"), [(1, None), (2, None), (8, None), (3, 2)])
def test_samples_follow_the_exact_distribution(denoising_steps: int, window: int | None) -> None:
    config = settings(denoising_steps, window)
    expected = exact(config)
    assert math.fsum(expected.values()) == pytest.approx(1)
    counts = Counter(tuple(c.response_ids) for c in samples(config))
    assert deviation(counts, expected) < 4
    # The bound tells this sampler from one of another number of steps or another order.
    for other in {settings(1), settings(8), settings(3, 2), settings(2)} - {config}:
        assert deviation(counts, exact(other)) > 4


def test_every_step_commits_as_many_on_average() -> None:
    counts: Counter[int] = Counter()
    for completion in samples(settings(8)):
        counts.update(completion.step_map)
    assert deviation(counts, dict.fromkeys(range(8), 1 / 8)) < 4
    # Positions commit independently of each other.
    together = sum(len(set(c.step_map)) == 1 for c in samples(settings(8))) / NUM_SAMPLES
    assert together == pytest.approx(1 / 64, abs=4 * math.sqrt(1 / 64 / NUM_SAMPLES))
    assert max(c.passes.denoising for c in samples(settings(8))) == 8
